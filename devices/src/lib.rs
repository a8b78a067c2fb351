//! Device models of the microVM.
