//! The directory of one bench: the image's files as directory and as archive, and what the engines keep while they are measured.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::interrupt::Interrupt;
use super::runs::kill_descendants;
use super::{Stop, mounts};
use crate::image::{Reference, Store, StoredImage};
use crate::report::chain;
use crate::workload::environment::OwnEnvironment;
use crate::workload::{Choices, Workload};

/// The shell that the measured programs are written for.
pub(super) const SHELL: &str = "/bin/sh";
/// The file that the loop over files uses.
pub(super) const SCRATCH_FILE: &str = "/.vmm-bench";
/// What the configurations for the runtimes claim to be written for: all that we ask for was in it, and old runtimes know it.
const RUNTIME_SPEC_VERSION: &str = "1.0.2";

/// A program of the image that is to be run.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// In place of the image's entrypoint.
    pub(super) entrypoint: Option<&'static str>,
    /// The command.
    pub(super) words: Vec<String>,
    /// Whether its standard input stays open.
    pub(super) keeps_input: bool,
}

impl Program {
    /// A script for the image's shell.
    pub(super) fn script(text: impl Into<String>) -> Self {
        Self {
            entrypoint: Some(SHELL),
            words: vec!["-c".to_owned(), text.into()],
            keeps_input: false,
        }
    }

    /// What the user typed; the image's own command if that is nothing.
    pub(super) fn typed(words: &[String]) -> Self {
        Self {
            entrypoint: None,
            words: words.to_vec(),
            keeps_input: false,
        }
    }

    pub(super) fn keeping_input(self) -> Self {
        Self {
            keeps_input: true,
            ..self
        }
    }
}

/// A program as each engine wants it.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) program: Program,
    /// The whole command.
    pub(super) arguments: Vec<String>,
    /// The whole environment, as `NAME=VALUE`.
    pub(super) environment: Vec<String>,
    /// A directory with `config.json`, for the runtimes.
    pub(super) bundle: PathBuf,
}

/// The directory of one bench.
#[derive(Debug)]
pub(super) struct Place {
    directory: TempDir,
    /// Distinguishes what the bench leaves with daemons.
    token: String,
    store: Store,
    image: StoredImage,
    /// What `vmm` needs to find the same store.
    pub(super) global: Vec<OsString>,
    archive: OnceCell<PathBuf>,
}

impl Place {
    /// Makes the directory and unpacks the image into it.
    pub(super) fn new(
        store: Store,
        image: StoredImage,
        global: Vec<OsString>,
        interrupt: Interrupt,
    ) -> Result<Self, Stop> {
        let directory = tempfile::Builder::new()
            .prefix("vmm-bench-")
            .tempdir()
            .map_err(|error| {
                Stop::Because(format!("a temporary directory cannot be made: {error}"))
            })?;
        let token = directory.path().file_name().unwrap_or_default();
        let token = token.to_string_lossy().to_lowercase().replace('.', "-");
        let place = Self {
            directory,
            token,
            store,
            image,
            global,
            archive: OnceCell::new(),
        };
        let root = place.root();
        let made = fs::create_dir(&root).and_then(|()| fs::create_dir(place.path("bundles")));
        made.map_err(|error| Stop::Because(format!("{}: {error}", root.display())))?;
        let unpacked = place
            .store
            .unpack(&place.image, &root, &|| interrupt.caught().is_none());
        interrupt.check()?;
        unpacked.map_err(|error| {
            Stop::Because(format!("the image cannot be unpacked: {}", chain(&error)))
        })?;
        if let Err(error) = place.make_scratch_file() {
            tracing::debug!(%error, "the native loop over files will fail");
        }
        Ok(place)
    }

    /// Makes the file of the loop over files, which the native one may not make itself. One of the image stays what it is.
    fn make_scratch_file(&self) -> io::Result<()> {
        let path = self.root().join(SCRATCH_FILE.trim_start_matches('/'));
        let file = File::create_new(path)?;
        file.set_permissions(Permissions::from_mode(0o666))
    }

    /// A path in the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The image's files.
    pub(super) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The image's identifier.
    pub(super) fn image_id(&self) -> String {
        self.image.id.to_string()
    }

    /// A word that no other bench has.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// What the image is called where it is loaded from [`Place::archive`].
    pub(super) fn image_name(&self) -> String {
        format!("localhost/{}:measured", self.token)
    }

    /// The image as an archive, under a name that is nobody else's; written when it is first asked for.
    pub(super) fn archive(&self) -> Result<&Path, Stop> {
        if let Some(path) = self.archive.get() {
            return Ok(path);
        }
        let path = self.path("image.tar");
        let because = |error: &dyn std::fmt::Display| {
            Stop::Because(format!(
                "the image cannot be written as an archive: {error}"
            ))
        };
        let name: Reference = self.image_name().parse().map_err(|error| because(&error))?;
        let mut file = File::create_new(&path).map_err(|error| because(&error))?;
        self.store
            .save_as(&self.image, &name, &mut file)
            .map_err(|error| because(&chain(&error)))?;
        Ok(self.archive.get_or_init(|| path))
    }

    /// Whether the image has a file of this path, as a process inside sees it.
    pub(super) fn has(&self, path: &str) -> bool {
        let opened = File::open(self.root()).and_then(|root| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            Ok(openat2(
                root,
                path,
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            )?)
        });
        opened
            .and_then(|file| File::from(file).metadata())
            .is_ok_and(|metadata| metadata.is_file())
    }

    /// Prepares a program to be run by any engine. `name` is of our own making.
    pub(super) fn task(&self, name: &str, program: Program) -> Result<Task, Stop> {
        let because = |error: &dyn std::fmt::Display| Stop::Because(error.to_string());
        let choices = Choices {
            command: program.words.clone(),
            entrypoint: program.entrypoint.map(str::to_owned),
            user: Some("0:0".to_owned()),
            hostname: "bench".to_owned(),
            ..Choices::default()
        };
        let workload = Workload::new(&self.image.config, &choices, &OwnEnvironment)
            .map_err(|error| because(&chain(&error)))?;
        let mut config = workload.config().clone();
        let environment: Vec<String> = config["process"]["env"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.as_str().map(str::to_owned))
            .collect();
        self.adapt(&mut config);
        let bundle = self.path("bundles").join(name);
        let text = config.to_string();
        let written =
            fs::create_dir_all(&bundle).and_then(|()| fs::write(bundle.join("config.json"), text));
        written.map_err(|error| because(&error))?;
        Ok(Task {
            arguments: workload.command(),
            environment,
            program,
            bundle,
        })
    }

    /// Makes of a configuration for a machine one for a container on this host: another root, a network namespace of its
    /// own with nothing in it, the limits of this account, which may not be allowed to raise them, and no devices of the
    /// host but those of every container: docker's rule, without which a container's root could make them.
    fn adapt(&self, config: &mut Value) {
        config["ociVersion"] = RUNTIME_SPEC_VERSION.into();
        config["root"]["path"] = self.root().to_string_lossy().into();
        if let Some(process) = config["process"].as_object_mut() {
            process.remove("rlimits");
        }
        config["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({"type": "network"}));
        }
    }
}

impl Drop for Place {
    /// Nothing of the bench is left: neither processes nor mounts, then the directory goes by itself.
    fn drop(&mut self) {
        kill_descendants();
        mounts::clear(self.directory.path());
    }
}
