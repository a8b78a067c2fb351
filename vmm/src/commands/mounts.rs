//! What a machine mounts: decided and made when it is created, opened when it starts.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cli::RunArgs;
use crate::dirs::Directories;
use crate::guest::GuestDirectory;
use crate::image::StoredImage;
use crate::machine::disk_name;
use crate::plan::{MachineChoices, first_disk};
use crate::report::{Help, Report, chain};
use crate::state::{Machine, Registry};
use crate::storage::{StorageSize, StorageSizeError};
use crate::volumes::store::{VolumeError, VolumeRecord, Volumes};
use crate::volumes::{
    AttachError, Attachments, DiskSources, NewVolume, TypedMount, TypedSource, VolumeName,
    destination, in_order,
};

/// How long the end of a machine may take until its volumes are free.
pub(super) const RELEASE_PATIENCE: Duration = Duration::from_secs(75);
/// How long to wait before looking again.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// All that a new machine mounts: what was typed, what other machines mount, and a volume of its own for each of the image's that is
/// none of these.
pub(super) fn decide(
    arguments: &RunArgs,
    image: &StoredImage,
    directories: &Directories,
) -> Result<Vec<TypedMount>, Report> {
    let mut mounts = arguments.volumes.mounts()?;
    let mut taken: BTreeSet<String> = mounts
        .iter()
        .map(|mount| mount.destination.clone())
        .chain(
            arguments
                .container
                .tmpfs
                .iter()
                .map(|it| it.destination().to_owned()),
        )
        .collect();
    for reference in &arguments.volumes.volumes_from {
        for mount in mounts_of(reference, directories)? {
            if taken.insert(mount.destination.clone()) {
                mounts.push(mount);
            }
        }
    }
    let config = image.config.config().as_ref();
    let declared = config.and_then(|config| config.volumes().as_ref());
    let has_own_config = arguments.container.config.is_some();
    for place in declared.into_iter().flatten().filter(|_| !has_own_config) {
        // What an image says and nobody could type is not heeded.
        let Ok(destination) = destination(place) else {
            continue;
        };
        if taken.insert(destination.clone()) {
            mounts.push(TypedMount {
                source: TypedSource::Volume(NewVolume {
                    copies: true,
                    ..NewVolume::default()
                }),
                destination,
                read_only: false,
            });
        }
    }
    let mut mounts = in_order(mounts)?;
    arguments.volumes.limit(&mut mounts)?;
    Ok(mounts)
}

/// What the machine mounts that `--volumes-from` names.
fn mounts_of(typed: &str, directories: &Directories) -> Result<Vec<TypedMount>, Report> {
    let (reference, read_only) = match typed.rsplit_once(':') {
        None => (typed, false),
        Some((reference, "rw")) => (reference, false),
        Some((reference, "ro")) => (reference, true),
        Some((_, mode)) => return Err(MountsError::Mode(mode.to_owned()).into()),
    };
    let machine = Registry::open(directories.machines())?.find(reference)?;
    let mut mounts = machine.record.settings.mounts;
    for mount in &mut mounts {
        mount.read_only |= read_only;
        if let TypedSource::Volume(volume) = &mut mount.source {
            volume.is_own = false;
        }
    }
    Ok(mounts)
}

/// Makes the volumes that are not there yet, and gives those of the machine's own their names. They go with what is returned, unless
/// they are kept.
pub(super) fn make(
    mounts: &mut [TypedMount],
    directories: &Directories,
) -> Result<OwnVolumes, Report> {
    let volumes = Volumes::new(directories.volumes());
    let mut own = OwnVolumes {
        directories: directories.clone(),
        volumes,
        names: Vec::new(),
    };
    for mount in mounts {
        let TypedSource::Volume(volume) = &mut mount.source else {
            continue;
        };
        let size = volume.size_bytes.map(size).transpose()?;
        let mut record = match &volume.name {
            Some(name) => VolumeRecord::new(name.clone(), size),
            None => VolumeRecord::anonymous(size).map_err(MountsError::Random)?,
        };
        record.labels.extend(volume.labels.iter().cloned());
        own.volumes.create(&record)?;
        if volume.name.is_none() {
            own.names.push(record.name.clone());
            volume.name = Some(record.name);
            volume.is_own = true;
        }
    }
    Ok(own)
}

/// The size of a volume, as it may be typed.
fn size(bytes: u64) -> Result<StorageSize, StorageSizeError> {
    bytes.to_string().parse()
}

/// Opens what a machine mounts, for one start.
pub(super) fn open(
    mounts: &[TypedMount],
    image: &StoredImage,
    choices: &MachineChoices,
    directories: &Directories,
) -> Result<Attachments, Report> {
    if mounts.is_empty() {
        return Ok(Attachments::default());
    }
    let volumes = Volumes::new(directories.volumes());
    let registry = Registry::open(directories.machines())?;
    let sources = DiskSources {
        volumes: &volumes,
        users: &|name| {
            let machines = registry.list().unwrap_or_default();
            // One that is held for what its guest still writes lets go of it.
            users(&machines, name, Machine::runs)
        },
        blank: &|| {
            let guest = GuestDirectory::find(directories)?.open_current(directories.cache())?;
            let blank = guest.open_blank(directories.cache())?;
            blank.ok_or(AttachError::NoBlank)
        },
    };
    let first = first_disk(image, choices);
    let name = |index| disk_name(first + index);
    Ok(Attachments::open(
        mounts,
        &sources,
        name,
        &directories.own(),
    )?)
}

/// The machines that mount a volume, by their names.
pub(super) fn users(
    machines: &[Machine],
    volume: &VolumeName,
    counts: impl Fn(&Machine) -> bool,
) -> Vec<String> {
    let mounts_it = |machine: &&Machine| {
        let mut mounts = machine.record.settings.mounts.iter();
        counts(machine) && mounts.any(|mount| mount.volume() == Some(volume))
    };
    machines
        .iter()
        .filter(mounts_it)
        .map(|machine| machine.record.name.to_string())
        .collect()
}

/// The machines that need a volume: those that run, and those that may be started again.
pub(super) fn needing(
    volume: &VolumeName,
    directories: &Directories,
) -> Result<Vec<String>, VolumeError> {
    let machines = Registry::open(directories.machines()).and_then(|registry| registry.list());
    let machines = machines.map_err(|error| VolumeError::Users(Box::new(error)))?;
    Ok(users(&machines, volume, |machine| {
        machine.alive || machine.is_kept()
    }))
}

/// Removes the volumes that were made for a machine which is gone.
pub(super) fn remove_own(mounts: &[TypedMount], directories: &Directories) {
    let volumes = Volumes::new(directories.volumes());
    for mount in mounts {
        if let TypedSource::Volume(volume) = &mount.source
            && volume.is_own
            && let Some(name) = &volume.name
        {
            remove_one(&volumes, name, || needing(name, directories));
        }
    }
}

/// Removes a volume that was made for a machine.
fn remove_one(
    volumes: &Volumes,
    name: &VolumeName,
    users: impl Fn() -> Result<Vec<String>, VolumeError>,
) {
    match remove_free(volumes, name, users) {
        // One that another machine took over is that one's.
        Err(VolumeError::InUse { users, .. }) if !users.is_empty() => {}
        Err(VolumeError::None(_)) | Ok(_) => {}
        Err(error) => tracing::warn!("{}", chain(&error)),
    }
}

/// Removes a volume once the VM process of a machine that is gone has let go of it, and says how much room that makes.
pub(super) fn remove_free(
    volumes: &Volumes,
    name: &VolumeName,
    users: impl Fn() -> Result<Vec<String>, VolumeError>,
) -> Result<u64, VolumeError> {
    let deadline = Instant::now() + RELEASE_PATIENCE;
    loop {
        match volumes.remove(name, &users) {
            Err(VolumeError::InUse { users, .. })
                if users.is_empty() && Instant::now() < deadline =>
            {
                sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// The volumes that were made for one machine: gone when this is, unless they are kept.
#[derive(Debug)]
pub(super) struct OwnVolumes {
    directories: Directories,
    volumes: Volumes,
    names: Vec<VolumeName>,
}

impl OwnVolumes {
    /// Leaves them to the machine, which is on record.
    pub(super) fn keep(&mut self) {
        self.names.clear();
    }
}

impl Drop for OwnVolumes {
    fn drop(&mut self) {
        for name in &self.names {
            // Others may mount them by now.
            remove_one(&self.volumes, name, || needing(name, &self.directories));
        }
    }
}

/// What was asked for cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountsError {
    /// A mode of `--volumes-from`.
    #[error("'{0}' is no mode of --volumes-from: there are ro and rw")]
    Mode(String),
    /// The host gives no random numbers.
    #[error("cannot make a name for a volume")]
    Random(#[source] std::io::Error),
}

impl Help for MountsError {}

impl Help for StorageSizeError {}
