//! The execution domain: runtime-spec `config-linux.md`, "Personality", and personality(2).

use protocol::StartFailure;

use crate::spec;
use crate::step::{Step as _, unsupported};
use crate::sys;

/// What the kernel calls itself to the container's programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Personality {
    /// `PER_LINUX`.
    Linux,
    /// `PER_LINUX32`: a processor of 32 bits.
    Linux32,
}

impl Personality {
    /// Reads `linux.personality`.
    ///
    /// # Errors
    ///
    /// If the domain is unknown, or there is a flag: the specification has none yet.
    pub(crate) fn new(personality: &spec::Personality) -> Result<Self, StartFailure> {
        if let Some(flag) = personality.flags.first() {
            return Err(unsupported(
                "linux.personality.flags",
                format!("flag {flag} is not supported"),
            ));
        }
        match personality.domain.as_str() {
            "LINUX" => Ok(Self::Linux),
            "LINUX32" => Ok(Self::Linux32),
            other => Err(unsupported(
                "linux.personality.domain",
                format!("{other} is unknown"),
            )),
        }
    }

    /// Gives it to the calling process, and all that it starts.
    ///
    /// # Errors
    ///
    /// The kernel's, see personality(2).
    pub(crate) fn apply(self) -> Result<(), StartFailure> {
        // include/uapi/linux/personality.h
        let persona = match self {
            Self::Linux => 0x0000,
            Self::Linux32 => 0x0008,
        };
        sys::set_personality(persona).step(|| "setting the personality".to_owned())
    }
}
