//! What a machine was created with: all that a second start cannot ask the person for again.
//!
//! Everything is decided: variables are filled in, a seccomp profile is compiled. The image is that of the machine's record.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::StorageSize;
use crate::limits::{CpuQuota, MemoryLimit};
use crate::machine::ShareFailure;
use crate::plan::MachineChoices;
use crate::report::Help;
use crate::state::BLUEPRINT;
use crate::volumes::TypedMount;
use crate::workload::Workload;
use crate::workload::limits::LimitChange;

/// The format that this program reads and writes.
const FORMAT: u32 = 1;
/// How the file's name begins while it is written.
const NEXT_BLUEPRINT: &str = "blueprint.json.";
/// A configuration of 4 MiB that was handed in may be longer as a part of this.
const MAX_BYTES: u64 = 16 << 20;

/// What a machine was created with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Blueprint {
    format: u32,
    /// What it runs.
    pub workload: Workload,
    /// What it sees beside its image.
    #[serde(default)]
    pub mounts: Vec<TypedMount>,
    /// What becomes of it when what it sees of the host is not served any more.
    #[serde(default)]
    pub on_share_failure: ShareFailure,
    /// Whether its standard input is to be open.
    pub interactive: bool,
    /// Whether that ends with the input of the client that has it. Earlier versions had no other.
    #[serde(default = "always")]
    pub passes_end: bool,
    /// As they would be typed.
    cpus: String,
    memory: String,
    storage: String,
}

fn always() -> bool {
    true
}

/// A blueprint that cannot be used.
#[derive(Debug, Error)]
pub enum BlueprintError {
    /// The machine was not created to be started again.
    #[error("machine '{0}' cannot be started again: nothing of it was kept")]
    None(String),
    /// It cannot be written.
    #[error("cannot write down what the machine is created with, in {}", path.display())]
    Write {
        /// The machine's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read what the machine was created with, in {}", path.display())]
    Read {
        /// The machine's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is of another version.
    #[error("what the machine was created with has format {found}; this vmm knows {FORMAT}")]
    Format {
        /// The one that it has.
        found: u32,
    },
    /// A limit makes no sense.
    #[error("what the machine was created with makes no sense: {0}")]
    Limit(String),
    /// What a snapshot says.
    #[error("what the snapshot's machine was created with makes no sense")]
    Copy(#[source] serde_json::Error),
}

impl Help for BlueprintError {
    fn help(&self) -> Option<String> {
        match self {
            Self::None(_) => Some(
                "machines of `vmm create`, and of `vmm run` without --rm and --kernel, are kept"
                    .to_owned(),
            ),
            Self::Read { .. } | Self::Format { .. } | Self::Limit(_) => {
                Some("remove it with `vmm rm`, and create another one".to_owned())
            }
            Self::Write { .. } | Self::Copy(_) => None,
        }
    }
}

impl Blueprint {
    /// Notes what a machine is created with.
    #[must_use]
    pub fn new(
        workload: Workload,
        mounts: Vec<TypedMount>,
        interactive: bool,
        passes_end: bool,
        choices: &MachineChoices,
        storage: StorageSize,
    ) -> Self {
        Self {
            format: FORMAT,
            workload,
            mounts,
            on_share_failure: ShareFailure::default(),
            interactive,
            passes_end,
            cpus: choices.cpus.to_string(),
            memory: choices.memory.to_string(),
            storage: storage.to_string(),
        }
    }

    /// Notes what becomes of the machine when what it sees of the host is not served any more.
    #[must_use]
    pub fn with_share_failure(self, on_share_failure: ShareFailure) -> Self {
        Self {
            on_share_failure,
            ..self
        }
    }

    /// The machine, as the person chose it.
    ///
    /// # Errors
    ///
    /// If no version of this program writes such limits.
    pub fn choices(&self) -> Result<MachineChoices, BlueprintError> {
        fn limit<T: FromStr<Err: ToString>>(text: &str) -> Result<T, BlueprintError> {
            T::from_str(text).map_err(|error| BlueprintError::Limit(error.to_string()))
        }
        Ok(MachineChoices {
            cpus: limit::<CpuQuota>(&self.cpus)?,
            memory: limit::<MemoryLimit>(&self.memory)?,
            kernel: None,
            verbose_kernel: false,
            storage: Some(limit::<StorageSize>(&self.storage)?),
        })
    }

    /// Changes limits, for the next start; `resources` is what changes of the configuration.
    pub fn limit(&mut self, change: &LimitChange, resources: &Value) {
        if let Some(cpus) = change.cpus {
            self.cpus = cpus.to_string();
        }
        if let Some(memory) = change.memory {
            self.memory = memory.to_string();
        }
        self.workload.limit(resources);
    }

    /// Writes it into a machine's directory, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Write`].
    pub fn write(&self, directory: &Path) -> Result<(), BlueprintError> {
        let write = || {
            let mut text = serde_json::to_vec(self)?;
            text.push(b'\n');
            let mut file = tempfile::Builder::new()
                .prefix(NEXT_BLUEPRINT)
                .tempfile_in(directory)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(directory.join(BLUEPRINT))?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| BlueprintError::Write {
            path: directory.to_owned(),
            source,
        })
    }

    /// It in a form that goes into a snapshot.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Copy`].
    pub fn to_copy(&self) -> Result<String, BlueprintError> {
        serde_json::to_string(self).map_err(BlueprintError::Copy)
    }

    /// That of a snapshot's machine.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Copy`] or [`BlueprintError::Format`].
    pub fn of_copy(text: &str) -> Result<Self, BlueprintError> {
        let blueprint: Self = serde_json::from_str(text).map_err(BlueprintError::Copy)?;
        match blueprint.format {
            FORMAT => Ok(blueprint),
            found => Err(BlueprintError::Format { found }),
        }
    }

    /// Reads that of the machine with this name.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::None`] if there is none, or what is wrong with it.
    pub fn read(directory: &Path, name: &str) -> Result<Self, BlueprintError> {
        let failed = |source| BlueprintError::Read {
            path: directory.to_owned(),
            source,
        };
        let file = match File::open(directory.join(BLUEPRINT)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BlueprintError::None(name.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut text)
            .map_err(failed)?;
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } =
            serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        if format != FORMAT {
            return Err(BlueprintError::Format { found: format });
        }
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    }
}
