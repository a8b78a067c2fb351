//! File systems of the machine's that its containers' mounts show parts of.
//!
//! They belong to the machine: they stay mounted when a container ends, and are synced when the machine does.

use protocol::{StartFailure, VOLUMES, Volume, volume_path};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::disk;
use crate::step::Step as _;

/// Permissions of the directories that volumes are mounted on.
const PLACE_MODE: Mode = Mode::from_raw_mode(0o700);

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
        Volume::Disk { device, read_only } => {
            let step = || format!("mounting the volume on {device}");
            if *read_only {
                return disk::mount_read_only(device, place).step(step);
            }
            disk::mount(device, place).step(step)?;
            disk::grow(device, place).step(|| format!("growing the volume on {device}"))
        }
    }
}
