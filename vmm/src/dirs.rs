//! Where `vmm` keeps things: the rules of the XDG base directory specification 0.8, and their overrides.
//!
//! `--root DIR` (or `VMM_ROOT`) puts everything below one directory. Otherwise images lie in
//! `$XDG_DATA_HOME/vmm/store`, volumes beside them in `vmm/volumes`, machines in `$XDG_STATE_HOME/vmm/machines`,
//! networks beside them in `vmm/networks`. Every directory that is
//! created is private to the user (0700).

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::report::Help;

/// The directories of one user, or of one `--root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    store: PathBuf,
    volumes: PathBuf,
    machines: PathBuf,
    networks: PathBuf,
    cache: PathBuf,
    guest: Vec<PathBuf>,
}

/// What only vmm itself may write to.
#[derive(Clone, Debug, Default)]
pub struct Own<'a> {
    /// Directories with all that is in them.
    whole: Vec<&'a Path>,
    /// Directories that were made for those, and may hold other things.
    around: Vec<&'a Path>,
}

impl Own<'_> {
    /// Whether this is one of them; `path` is a canonical one.
    #[must_use]
    pub fn has(&self, path: &Path) -> bool {
        let real = |own: &&Path| own.canonicalize().ok();
        let mut whole = self.whole.iter().filter_map(real);
        let mut around = self.around.iter().filter_map(real);
        whole.any(|own| path.starts_with(own)) || around.any(|own| path == own)
    }
}

/// What the directories are found from; a value so that tests need not touch the process's environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `--root`, or `VMM_ROOT`.
    pub root: Option<PathBuf>,
    /// `VMM_GUEST_DIR`.
    pub guest_dir: Option<OsString>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<OsString>,
    /// `XDG_STATE_HOME`.
    pub state_home: Option<OsString>,
    /// `XDG_CACHE_HOME`.
    pub cache_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// Where the running binary lies.
    pub binary: Option<PathBuf>,
}

impl Environment {
    /// Reads the process's environment; `root` is what was typed, which stands above `VMM_ROOT`.
    #[must_use]
    pub fn of_process(root: Option<PathBuf>) -> Self {
        let root_variable = || std::env::var_os("VMM_ROOT").filter(|it| !it.is_empty());
        Self {
            root: root.or_else(|| root_variable().map(PathBuf::from)),
            guest_dir: std::env::var_os("VMM_GUEST_DIR"),
            data_home: std::env::var_os("XDG_DATA_HOME"),
            state_home: std::env::var_os("XDG_STATE_HOME"),
            cache_home: std::env::var_os("XDG_CACHE_HOME"),
            home: std::env::var_os("HOME"),
            binary: std::env::current_exe().ok(),
        }
    }
}

impl Directories {
    /// Finds the directories; creates none.
    ///
    /// # Errors
    ///
    /// [`DirectoriesError::NoHome`] if neither a root nor a home is known, [`DirectoriesError::RelativeRoot`]
    /// if the root cannot be made absolute.
    pub fn find(environment: &Environment) -> Result<Self, DirectoriesError> {
        let data = || base(environment.data_home.as_ref(), environment, ".local/share");
        let (store, volumes, machines, networks, cache) = match &environment.root {
            Some(root) => {
                let root =
                    std::path::absolute(root).map_err(|source| DirectoriesError::RelativeRoot {
                        root: root.clone(),
                        source,
                    })?;
                (
                    root.join("store"),
                    root.join("volumes"),
                    root.join("machines"),
                    root.join("networks"),
                    root.join("cache"),
                )
            }
            None => {
                let data = data()?;
                let state = base(environment.state_home.as_ref(), environment, ".local/state")?;
                let cache = base(environment.cache_home.as_ref(), environment, ".cache")?;
                (
                    data.join("vmm/store"),
                    data.join("vmm/volumes"),
                    state.join("vmm/machines"),
                    state.join("vmm/networks"),
                    cache.join("vmm"),
                )
            }
        };
        let mut guest = Vec::new();
        if let Some(directory) = environment.guest_dir.as_ref().filter(|dir| !dir.is_empty()) {
            guest.push(PathBuf::from(directory));
        }
        if let Some(directory) = environment.binary.as_deref().and_then(Path::parent) {
            // `bin/vmm` beside `share/`, and the build's own `target/release/vmm` beside `target/share/`.
            let prefix = directory.parent().unwrap_or(directory);
            guest.push(prefix.join("share/vmm/guest"));
        }
        if let Ok(data) = data() {
            guest.push(data.join("vmm/guest"));
        }
        Ok(Self {
            store,
            volumes,
            machines,
            networks,
            cache,
            guest,
        })
    }

    /// Returns the directory of the image store.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Returns the directory of the volumes.
    #[must_use]
    pub fn volumes(&self) -> &Path {
        &self.volumes
    }

    /// Returns the directory of the machines' records.
    #[must_use]
    pub fn machines(&self) -> &Path {
        &self.machines
    }

    /// Returns the directory of the networks.
    #[must_use]
    pub fn networks(&self) -> &Path {
        &self.networks
    }

    /// Returns the directory of what can be found out again: may be removed at any time.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Returns all that only vmm itself may write to.
    #[must_use]
    pub fn own(&self) -> Own<'_> {
        let around = [&self.store, &self.machines];
        Own {
            whole: vec![
                &self.store,
                &self.machines,
                &self.networks,
                &self.volumes,
                &self.cache,
            ],
            around: around.iter().filter_map(|own| own.parent()).collect(),
        }
    }

    /// Returns the file that remembers what the host's KVM can do.
    #[must_use]
    pub fn host_cache(&self) -> PathBuf {
        self.cache.join("host.json")
    }

    /// Returns where guest images may be installed, best first.
    #[must_use]
    pub fn guest_candidates(&self) -> &[PathBuf] {
        &self.guest
    }
}

/// Creates a directory and its parents, private to the user.
///
/// # Errors
///
/// [`DirectoriesError::Create`] with the path.
pub fn create_private(path: &Path) -> Result<(), DirectoriesError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DirectoriesError::Create {
            path: path.to_owned(),
            source,
        })
}

/// Returns an XDG base directory; a relative one is ignored, as the specification demands.
fn base(
    typed: Option<&OsString>,
    environment: &Environment,
    below_home: &str,
) -> Result<PathBuf, DirectoriesError> {
    if let Some(directory) = typed.map(Path::new).filter(|path| path.is_absolute()) {
        return Ok(directory.to_owned());
    }
    match environment.home.as_ref().map(Path::new) {
        Some(home) if home.is_absolute() => Ok(home.join(below_home)),
        _ => Err(DirectoriesError::NoHome),
    }
}

/// Why the directories are not known or not there.
#[derive(Debug, Error)]
pub enum DirectoriesError {
    /// There is no place to keep anything.
    #[error("HOME is not set to an absolute path, and no --root was given")]
    NoHome,
    /// The root is relative and there is no current directory.
    #[error("cannot make the root {root} an absolute path", root = root.display())]
    RelativeRoot {
        /// What was given.
        root: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory could not be created.
    #[error("cannot create the directory {path}", path = path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Help for DirectoriesError {
    fn help(&self) -> Option<String> {
        Some("name a directory that can be written to with --root DIR or VMM_ROOT".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn environment() -> Environment {
        Environment {
            home: Some("/home/ann".into()),
            binary: Some("/opt/vmm/bin/vmm".into()),
            ..Environment::default()
        }
    }

    #[test]
    fn without_anything_set_the_home_directory_holds_all() {
        let directories = Directories::find(&environment()).unwrap();

        assert_eq!(
            directories.store(),
            Path::new("/home/ann/.local/share/vmm/store")
        );
        assert_eq!(
            directories.volumes(),
            Path::new("/home/ann/.local/share/vmm/volumes")
        );
        assert_eq!(
            directories.machines(),
            Path::new("/home/ann/.local/state/vmm/machines")
        );
        assert_eq!(directories.cache(), Path::new("/home/ann/.cache/vmm"));
    }

    #[test]
    fn xdg_variables_move_the_directories_unless_relative() {
        let directories = Directories::find(&Environment {
            data_home: Some("/data".into()),
            state_home: Some("state".into()),
            ..environment()
        })
        .unwrap();

        assert_eq!(directories.store(), Path::new("/data/vmm/store"));
        assert_eq!(
            directories.machines(),
            Path::new("/home/ann/.local/state/vmm/machines")
        );
    }

    #[test]
    fn a_root_holds_everything_and_needs_no_home() {
        let directories = Directories::find(&Environment {
            root: Some("/srv/vmm".into()),
            home: None,
            ..environment()
        })
        .unwrap();

        assert_eq!(directories.store(), Path::new("/srv/vmm/store"));
        assert_eq!(directories.volumes(), Path::new("/srv/vmm/volumes"));
        assert_eq!(directories.machines(), Path::new("/srv/vmm/machines"));
    }

    #[test]
    fn guest_images_are_looked_for_in_the_order_of_the_manual() {
        let directories = Directories::find(&Environment {
            guest_dir: Some("/mine".into()),
            ..environment()
        })
        .unwrap();

        assert_eq!(
            directories.guest_candidates(),
            [
                Path::new("/mine"),
                Path::new("/opt/vmm/share/vmm/guest"),
                Path::new("/home/ann/.local/share/vmm/guest"),
            ]
        );
    }

    #[test]
    fn without_home_and_root_there_is_an_error_with_help() {
        let error = Directories::find(&Environment::default()).unwrap_err();

        assert!(matches!(error, DirectoriesError::NoHome));
        assert!(error.help().unwrap().contains("--root"));
    }

    #[test]
    fn created_directories_are_private() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");

        create_private(&path).unwrap();

        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
