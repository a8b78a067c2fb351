//! What a volume was made with: its `volume.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::VolumeFault;
use crate::state::{MachineId, Timestamp};
use crate::storage::StorageSize;
use crate::volumes::VolumeName;

/// The format that this program reads and writes.
pub(super) const FORMAT: u32 = 1;
/// The record's file.
const RECORD: &str = "volume.json";
/// More is no record.
const MAX_BYTES: u64 = 1 << 20;

/// The label of a volume that was made for one machine, docker's.
pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// What a volume was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    pub(super) format: u32,
    /// Its name.
    pub name: VolumeName,
    /// When it was made.
    pub created: Timestamp,
    /// What a person wrote on it.
    pub labels: BTreeMap<String, String>,
    /// The options of its driver, as they were typed.
    pub options: BTreeMap<String, String>,
    /// How long its disk is.
    pub size_bytes: u64,
}

impl VolumeRecord {
    /// Notes what a volume is made with, now.
    #[must_use]
    pub fn new(name: VolumeName, size: Option<StorageSize>) -> Self {
        let options = size.map(|size| ("size".to_owned(), size.to_string()));
        Self {
            format: FORMAT,
            name,
            created: Timestamp::now(),
            labels: BTreeMap::new(),
            options: options.into_iter().collect(),
            size_bytes: size.unwrap_or_default().bytes(),
        }
    }

    /// Notes the same of a volume for one machine, with a name that nobody has thought of.
    ///
    /// # Errors
    ///
    /// If the host gives no random numbers.
    pub fn anonymous(size: Option<StorageSize>) -> io::Result<Self> {
        // 64 digits, as those of machines.
        let digits = MachineId::random()?.to_string();
        let name = digits.parse().map_err(io::Error::other)?;
        let mut record = Self::new(name, size);
        record
            .labels
            .insert(ANONYMOUS_LABEL.to_owned(), String::new());
        Ok(record)
    }

    /// Whether it was made for one machine.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS_LABEL)
    }

    /// Writes it into the volume's directory, whole or not at all.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        let mut file = tempfile::Builder::new()
            .prefix(RECORD)
            .tempfile_in(directory)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(directory.join(RECORD))?;
        Ok(())
    }

    /// Reads that of the volume in this directory.
    pub(super) fn read(directory: &Path, name: &VolumeName) -> Result<Self, VolumeFault> {
        let file = match File::open(directory.join(RECORD)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(VolumeFault::None),
            Err(error) => return Err(VolumeFault::Read(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut text)
            .map_err(VolumeFault::Read)?;
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } =
            serde_json::from_slice(&text).map_err(VolumeFault::NotARecord)?;
        if format != FORMAT {
            return Err(VolumeFault::Format { found: format });
        }
        let record: Self = serde_json::from_slice(&text).map_err(VolumeFault::NotARecord)?;
        match record.name == *name {
            true => Ok(record),
            false => Err(VolumeFault::OtherName(record.name)),
        }
    }
}
