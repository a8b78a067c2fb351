//! Gateways at work: a guest that is a TCP/IP stack of its own at the other end of the wire, and real sockets on the host's loopback,
//! which the guest reaches under the gateway's address where the configuration says so.

mod bounds;
mod datagrams;
mod frames;
mod guest;
mod namespaces;
mod ports;
mod tcp;
