//! File systems of the machine's that its containers' mounts show parts of.
//!
//! They belong to the machine: they stay mounted when a container ends, and are synced when the machine does.

use protocol::{
    HOSTNAME_FILE, HOSTS_FILE, MAX_VOLUMES, Names, RESOLV_CONF_FILE, StartFailure, VOLUMES, Volume,
    volume_path,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::disk;
use crate::step::Step as _;
use crate::sys;

/// Permissions of the directories that volumes are mounted on.
const PLACE_MODE: Mode = Mode::from_raw_mode(0o700);
/// Permissions of a new volume, docker's.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// Mounts each volume at its [`volume_path`]. One that is mounted already, for a container before, is left as it is.
///
/// # Errors
///
/// If one cannot be mounted.
pub(super) fn mount(volumes: &[Volume]) -> Result<(), StartFailure> {
    if volumes.is_empty() {
        return Ok(());
    }
    make_places()?;
    volumes.iter().enumerate().try_for_each(|(index, volume)| {
        let place = volume_path(index);
        match rustix::fs::mkdir(&place, PLACE_MODE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(()),
            Err(error) => return Err(error).step(|| format!("making {place}")),
        }
        let mounted = mount_one(volume, &place);
        if mounted.is_err() {
            // Another try is to find it as this one did.
            let _ = rustix::fs::rmdir(&place);
        }
        mounted
    })
}

/// Lets files be read in as large pieces as the device takes, where the kernel would take an eighth of that. It goes without.
fn read_far_ahead(place: &str) {
    const KIBIBYTES: &str = "1024";
    if let Ok(stat) = rustix::fs::stat(place) {
        let (major, minor) = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        let _as_it_was = std::fs::write(file, KIBIBYTES);
    }
}

/// Makes room for the places: the agent's own tree is read-only.
fn make_places() -> Result<(), StartFailure> {
    if rustix::fs::stat(VOLUMES).is_ok() {
        return Ok(());
    }
    let step = || format!("making {VOLUMES}");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", "/run", "tmpfs", flags, c"mode=700").step(step)?;
    rustix::fs::mkdir(VOLUMES, PLACE_MODE).step(step)
}

fn mount_one(volume: &Volume, place: &str) -> Result<(), StartFailure> {
    match volume {
        Volume::Share { tag } => {
            rustix::mount::mount(tag.as_str(), place, "virtiofs", MountFlags::empty(), None)
                .step(|| format!("mounting the share {tag}"))?;
            read_far_ahead(place);
            Ok(())
        }
        Volume::Disk {
            device,
            read_only,
            directory,
        } => {
            let step = || format!("mounting the volume on {device}");
            if *read_only {
                return disk::mount_read_only(device, place).step(step);
            }
            disk::mount(device, place).step(step)?;
            disk::grow(device, place)
                .map(drop)
                .step(|| format!("growing the volume on {device}"))?;
            match directory {
                Some(name) => make_directory(&format!("{place}/{name}")),
                None => Ok(()),
            }
        }
        Volume::Names => {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("tmpfs", place, "tmpfs", flags, c"mode=755,size=1m")
                .step(|| format!("mounting {place}"))?;
            // The mounts of a container that is built ahead need files.
            write_files(place, &Names::default())
        }
    }
}

/// Fills the files of a container's names, if it has such: the mounts show what is in them by then.
///
/// # Errors
///
/// If the volume cannot be mounted or written to.
pub(crate) fn write_names(volumes: &[Volume], names: &Names) -> Result<(), StartFailure> {
    let Some(index) = volumes.iter().position(|it| *it == Volume::Names) else {
        return Ok(());
    };
    mount(volumes)?;
    write_files(&volume_path(index), names)
}

fn write_files(place: &str, names: &Names) -> Result<(), StartFailure> {
    let files = [
        (HOSTS_FILE, &names.hosts),
        (HOSTNAME_FILE, &names.hostname),
        (RESOLV_CONF_FILE, &names.resolv_conf),
    ];
    files.iter().try_for_each(|(name, text)| {
        std::fs::write(format!("{place}/{name}"), text).step(|| format!("writing /etc/{name}"))
    })
}

/// Makes the directory of a volume that mounts show. On a file system that is damaged, and therefore not written to, what is there
/// can still be read.
fn make_directory(path: &str) -> Result<(), StartFailure> {
    match rustix::fs::mkdir(path, DIRECTORY_MODE) {
        Ok(()) => rustix::fs::chmod(path, DIRECTORY_MODE).step(|| format!("making {path}")),
        Err(Errno::EXIST | Errno::ROFS) => Ok(()),
        Err(error) => Err(error).step(|| format!("making {path}")),
    }
}

/// Makes the file system of every volume on a disk as large as that is by now, and says how large that is.
///
/// # Errors
///
/// If one cannot be made so large.
pub(crate) fn grow() -> Result<Vec<u64>, StartFailure> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")
        .step(|| "looking for the volumes".to_owned())?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (place.starts_with(VOLUMES) && kind == "ext4").then_some((device, place))
        })
        .take(MAX_VOLUMES)
        .map(|(device, place)| {
            disk::grow(device, place).step(|| format!("growing the volume on {device}"))
        })
        .collect()
}

/// Puts every volume on a disk in order, at the end of the machine: all is written, and the journal is empty, so that the disk can be
/// read by who may not write to it. Nothing writes to a volume after that.
pub(crate) fn settle() {
    let Ok(places) = std::fs::read_dir(VOLUMES) else {
        return;
    };
    for place in places.flatten() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(place.path(), flags, Mode::empty());
        // A share has nothing to put in order, and a disk that fails stays as it is.
        let _ = opened.and_then(|directory| sys::freeze_file_system(&directory));
    }
}
