//! What people type after `-v` and `--mount`, in docker's words.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{DiskLimits, VolumeName};
use crate::limits::ByteSize;
use crate::report::Help;

/// One mount of a workload, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypedMount {
    /// What is mounted.
    pub source: TypedSource,
    /// Where: an absolute path in the container, without `.`, `..` and doubled slashes, and never the root.
    pub destination: String,
    /// Whether nothing may be written to it.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TypedSource {
    /// A file or directory of the host.
    Bind(Bind),
    /// A volume.
    Volume(NewVolume),
    /// A file system in the guest's memory.
    Tmpfs(NewTmpfs),
    /// The file system on a disk of the host.
    Disk(HostDisk),
}

/// A file or directory of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where it is; absolute.
    pub source: PathBuf,
    /// Whether a directory is made where there is nothing: docker's `-v` does, its `--mount` does not.
    pub creates_source: bool,
    /// How changes here are seen there.
    pub cache: CacheMode,
    /// What of mounts made below it later is seen on the other side; docker's names.
    pub propagation: Option<String>,
    /// Whether what is mounted below the source here is seen there, too.
    pub is_recursive: bool,
    /// Whether it is made the container's user's own: podman's `U`.
    pub changes_owner: bool,
}

/// How the guest keeps in mind what it has seen of a directory of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheMode {
    /// For a short time: a change here is seen there soon.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// For as long as it likes: nobody here changes anything.
    Always,
}

/// A volume, which is made if it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    /// None for one that belongs to its machine.
    pub name: Option<VolumeName>,
    /// Whether the name was made up for that machine, with which it goes.
    #[serde(default)]
    pub is_own: bool,
    /// Whether a volume with nothing in it begins with what the image has at that place.
    pub copies: bool,
    /// A directory of the volume that is mounted in place of the whole.
    pub subpath: Option<String>,
    /// For a new one: how large it may become.
    pub size_bytes: Option<u64>,
    /// For a new one.
    pub labels: Vec<(String, String)>,
    /// Whether it is made the container's user's own: podman's `U`.
    pub changes_owner: bool,
    /// How fast it may be.
    #[serde(default)]
    pub limits: DiskLimits,
}

/// A file or block device of the host with a file system on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDisk {
    /// Where it is; absolute.
    pub source: PathBuf,
    /// How fast it may be.
    #[serde(default)]
    pub limits: DiskLimits,
}

/// A file system in the guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTmpfs {
    /// How large it may become.
    pub size_bytes: Option<u64>,
    /// Permissions of its root.
    pub mode: Option<u32>,
    /// Further options of mount(8).
    pub options: Vec<String>,
}

/// What was typed makes no mount.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MountError {
    /// A part is missing or too much.
    #[error("'{0}' is no disk as in FILE:PATH or FILE:PATH:ro")]
    NotADisk(String),
    /// A part is missing or too much.
    #[error("'{0}' is no volume as in DIRECTORY:PATH, NAME:PATH or PATH, with :OPTIONS if any")]
    NotAVolume(String),
    /// The place is none.
    #[error("'{0}' is no place for a mount: it takes an absolute path below the container's root")]
    Destination(String),
    /// The source is none.
    #[error("'{0}' is no absolute path")]
    RelativeSource(String),
    /// A name of a volume is none.
    #[error("'{0}' is neither an absolute path nor a volume's name")]
    Source(String),
    /// `-v` has no such option.
    #[error("'{0}' is no option of a volume")]
    Option(String),
    /// Two options that exclude each other.
    #[error("'{0}' and '{1}' exclude each other")]
    Conflict(String, String),
    /// `--mount` has no such field.
    #[error("'{0}' is no field of --mount")]
    Field(String),
    /// A field of `--mount` belongs to another type.
    #[error("'{0}' means nothing for --mount type={1}")]
    FieldOfOther(String, &'static str),
    /// A field of `--mount` has no value, or a wrong one.
    #[error("'{value}' is no value of {field}")]
    Value {
        /// The field's name.
        field: String,
        /// What was typed.
        value: String,
    },
    /// A field of `--mount` is missing.
    #[error("--mount type={0} takes a field '{1}'")]
    Missing(&'static str, &'static str),
    /// There is no such type.
    #[error("'{0}' is no type of --mount: there are bind, volume and tmpfs")]
    Type(String),
    /// Volumes have one driver.
    #[error("there is no driver '{0}' for volumes: the only one is 'local'")]
    Driver(String),
    /// Two mounts at one place.
    #[error("two mounts are to be at {0}")]
    Twice(String),
}

impl Help for MountError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::RelativeSource(source) => {
                return Some(format!("to name a directory here: $PWD/{source}"));
            }
            Self::Source(_) => {
                "a path begins with '/' or './', a volume's name has letters, digits, '_', '.' and '-'"
            }
            Self::Option(_) => {
                "options are ro, rw, nocopy, U, cache=auto|none|always and the propagations"
            }
            Self::Type(_) | Self::Missing(..) => {
                "as in: --mount type=bind,source=/srv/www,destination=/www,readonly"
            }
            _ => return None,
        };
        Some(help.to_owned())
    }
}

/// Words of docker's `-v` that mean nothing in a machine of its own: labels of SELinux, hints for caches of another system.
const IGNORED: [&str; 5] = ["z", "Z", "consistent", "cached", "delegated"];
/// How mounts propagate: mount_namespaces(7).
const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

impl TypedMount {
    /// The volume that it mounts, if it is one that has a name by now.
    #[must_use]
    pub fn volume(&self) -> Option<&VolumeName> {
        match &self.source {
            TypedSource::Volume(volume) => volume.name.as_ref(),
            _ => None,
        }
    }

    /// What it is called by: the volume's name, or where its source is on the host; nothing for what is in the guest's memory.
    #[must_use]
    pub fn source_name(&self) -> Option<String> {
        match &self.source {
            TypedSource::Bind(bind) => Some(bind.source.display().to_string()),
            TypedSource::Volume(volume) => volume.name.as_ref().map(ToString::to_string),
            TypedSource::Disk(disk) => Some(disk.source.display().to_string()),
            TypedSource::Tmpfs(_) => None,
        }
    }

    /// Whether it is a disk that the container sees as a device, and not as a file system.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.source, TypedSource::Disk(_)) && self.destination.starts_with("/dev/")
    }

    /// Reads the value of `-v`. A source that begins with a dot is one below `directory`, the current one.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub fn of_volume_flag(text: &str, directory: &Path) -> Result<Self, MountError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, place, options) = match parts.as_slice() {
            [place] => (None, *place, ""),
            [source, place] => (Some(*source), *place, ""),
            [source, place, options] => (Some(*source), *place, *options),
            _ => return Err(MountError::NotAVolume(text.to_owned())),
        };
        if place.is_empty() || source == Some("") {
            return Err(MountError::NotAVolume(text.to_owned()));
        }
        let options = VolumeOptions::new(options)?;
        let source = match source {
            Some(path) if path.starts_with(['/', '.']) => {
                options.refuse("nocopy", options.without_copy)?;
                TypedSource::Bind(Bind {
                    source: clean(&directory.join(path)),
                    creates_source: true,
                    cache: options.cache.unwrap_or_default(),
                    propagation: options.propagation,
                    is_recursive: true,
                    changes_owner: options.changes_owner,
                })
            }
            name => {
                let name = name
                    .map(|name| {
                        name.parse()
                            .map_err(|_| MountError::Source(name.to_owned()))
                    })
                    .transpose()?;
                options.refuse("cache", options.cache.is_some())?;
                TypedSource::Volume(NewVolume {
                    name,
                    copies: !options.without_copy,
                    changes_owner: options.changes_owner,
                    ..NewVolume::default()
                })
            }
        };
        Ok(Self {
            source,
            destination: destination(place)?,
            read_only: options.read_only,
        })
    }

    /// Reads the value of `--disk`. A relative path begins at `directory`, the current one.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub fn of_disk_flag(text: &str, directory: &Path) -> Result<Self, MountError> {
        let wrong = || MountError::NotADisk(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        let (source, place, read_only) = match parts.as_slice() {
            [source, place] | [source, place, "rw"] => (*source, *place, false),
            [source, place, "ro"] => (*source, *place, true),
            _ => return Err(wrong()),
        };
        if source.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            source: TypedSource::Disk(HostDisk {
                source: clean(&directory.join(source)),
                limits: DiskLimits::default(),
            }),
            destination: destination(place)?,
            read_only,
        })
    }

    /// Reads the value of `--mount`.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub fn of_mount_flag(text: &str) -> Result<Self, MountError> {
        let mut fields = Fields::new(text)?;
        let kind = fields
            .take(&["type"])?
            .unwrap_or_else(|| "volume".to_owned());
        let kind: &'static str = match kind.as_str() {
            "bind" => "bind",
            "volume" => "volume",
            "tmpfs" => "tmpfs",
            _ => return Err(MountError::Type(kind)),
        };
        let place = fields
            .take(&["destination", "dst", "target"])?
            .ok_or(MountError::Missing(kind, "destination"))?;
        let read_only = fields.take_flag(&["readonly", "ro"])?;
        let source = fields.take(&["source", "src"])?;
        // For docker on other systems.
        fields.take(&["consistency"])?;
        let source = match kind {
            "bind" => TypedSource::Bind(fields.bind(source)?),
            "volume" => TypedSource::Volume(fields.volume(source)?),
            _ => TypedSource::Tmpfs(fields.tmpfs(source.as_deref())?),
        };
        fields.end(kind)?;
        Ok(Self {
            source,
            destination: destination(&place)?,
            read_only,
        })
    }
}

/// What stands behind the second colon of `-v`.
#[derive(Default)]
struct VolumeOptions {
    read_only: bool,
    without_copy: bool,
    changes_owner: bool,
    cache: Option<CacheMode>,
    propagation: Option<String>,
}

impl VolumeOptions {
    fn new(text: &str) -> Result<Self, MountError> {
        let mut options = Self::default();
        let mut access = None;
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word {
                "ro" | "rw" => {
                    if let Some(other) = access.replace(word).filter(|other| *other != word) {
                        return Err(MountError::Conflict(other.to_owned(), word.to_owned()));
                    }
                }
                "nocopy" => options.without_copy = true,
                "U" => options.changes_owner = true,
                word if PROPAGATIONS.contains(&word) => options.propagation = Some(word.to_owned()),
                word if IGNORED.contains(&word) => (),
                word => match word.strip_prefix("cache=").map(str::parse) {
                    Some(Ok(cache)) => options.cache = Some(cache),
                    _ => return Err(MountError::Option(word.to_owned())),
                },
            }
        }
        options.read_only = access == Some("ro");
        Ok(options)
    }

    fn refuse(&self, option: &str, is_there: bool) -> Result<(), MountError> {
        if is_there {
            return Err(MountError::Option(option.to_owned()));
        }
        Ok(())
    }
}

/// What stands between the commas of `--mount`, in which a field in quotes may have some.
struct Fields(Vec<(String, Option<String>)>);

impl Fields {
    fn new(text: &str) -> Result<Self, MountError> {
        let mut fields = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let field;
            if let Some(quoted) = rest.strip_prefix('"') {
                let wrong = || MountError::Field(text.to_owned());
                let (inside, after) = quoted.split_once('"').ok_or_else(wrong)?;
                field = inside;
                rest = match after.strip_prefix(',') {
                    Some(after) => after,
                    None if after.is_empty() => after,
                    None => return Err(wrong()),
                };
            } else {
                (field, rest) = rest.split_once(',').unwrap_or((rest, ""));
            }
            let (name, value) = match field.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (field, None),
            };
            fields.push((name.trim().to_ascii_lowercase(), value));
        }
        Ok(Self(fields))
    }

    /// Takes all fields of these names out.
    fn take_all(&mut self, names: &[&str]) -> Vec<(String, Option<String>)> {
        self.0
            .extract_if(.., |(name, _)| names.contains(&name.as_str()))
            .collect()
    }

    /// Takes the value of a field out that has one.
    fn take(&mut self, names: &[&str]) -> Result<Option<String>, MountError> {
        match self.take_all(names).pop() {
            None => Ok(None),
            Some((_, Some(value))) if !value.is_empty() => Ok(Some(value)),
            Some((field, value)) => Err(MountError::Value {
                field,
                value: value.unwrap_or_default(),
            }),
        }
    }

    /// Takes a field out that is true if it has no value.
    fn take_flag(&mut self, names: &[&str]) -> Result<bool, MountError> {
        let Some((field, value)) = self.take_all(names).pop() else {
            return Ok(false);
        };
        match value.as_deref() {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(value) => Err(MountError::Value {
                field,
                value: value.to_owned(),
            }),
        }
    }

    /// Takes a field out whose value says something else.
    fn take_parsed<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, MountError> {
        let Some(value) = self.take(&[name])? else {
            return Ok(None);
        };
        parse(&value).map(Some).ok_or_else(|| MountError::Value {
            field: name.to_owned(),
            value,
        })
    }

    fn bind(&mut self, source: Option<String>) -> Result<Bind, MountError> {
        let source = source.ok_or(MountError::Missing("bind", "source"))?;
        if !source.starts_with('/') {
            return Err(MountError::RelativeSource(source));
        }
        let propagation = self.take_parsed("bind-propagation", |word| {
            PROPAGATIONS.contains(&word).then(|| word.to_owned())
        })?;
        let is_recursive = self.take_parsed("bind-recursive", |word| match word {
            "enabled" | "writable" | "readonly" => Some(true),
            "disabled" => Some(false),
            _ => None,
        })?;
        let non_recursive = self.take_flag(&["bind-nonrecursive"])?;
        Ok(Bind {
            source: clean(Path::new(&source)),
            creates_source: self.take_flag(&["bind-create-src"])?,
            cache: self
                .take_parsed("cache", |word| word.parse().ok())?
                .unwrap_or_default(),
            propagation,
            is_recursive: is_recursive.unwrap_or(!non_recursive),
            changes_owner: self.take_flag(&["u", "chown"])?,
        })
    }

    fn volume(&mut self, source: Option<String>) -> Result<NewVolume, MountError> {
        let name = source
            .map(|name| name.parse().map_err(|_| MountError::Source(name)))
            .transpose()?;
        if let Some(driver) = self
            .take(&["volume-driver"])?
            .filter(|driver| driver != "local")
        {
            return Err(MountError::Driver(driver));
        }
        let mut volume = NewVolume {
            name,
            copies: !self.take_flag(&["volume-nocopy"])?,
            subpath: self.take_parsed("volume-subpath", |path| {
                let path = Path::new(path);
                let is_below = path
                    .components()
                    .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
                is_below.then(|| path.to_string_lossy().into_owned())
            })?,
            changes_owner: self.take_flag(&["u", "chown"])?,
            ..NewVolume::default()
        };
        for (field, value) in self.take_all(&["volume-opt", "volume-label"]) {
            let value = value.unwrap_or_default();
            let (name, text) = value.split_once('=').unwrap_or((&value, ""));
            if field == "volume-label" {
                volume.labels.push((name.to_owned(), text.to_owned()));
                continue;
            }
            match (name, text.parse::<ByteSize>()) {
                ("size", Ok(size)) => volume.size_bytes = Some(size.bytes()),
                _ => return Err(MountError::Value { field, value }),
            }
        }
        Ok(volume)
    }

    fn tmpfs(&mut self, source: Option<&str>) -> Result<NewTmpfs, MountError> {
        if source.is_some() {
            return Err(MountError::FieldOfOther("source".to_owned(), "tmpfs"));
        }
        Ok(NewTmpfs {
            size_bytes: self.take_parsed("tmpfs-size", |text| {
                text.parse::<ByteSize>().ok().map(ByteSize::bytes)
            })?,
            mode: self.take_parsed("tmpfs-mode", |text| {
                let mode = u32::from_str_radix(text, 8).ok()?;
                (mode <= 0o7777).then_some(mode)
            })?,
            options: Vec::new(),
        })
    }

    /// Refuses what nobody has taken.
    fn end(mut self, kind: &'static str) -> Result<(), MountError> {
        const OF_ONE_TYPE: [&str; 3] = ["bind-", "volume-", "tmpfs-"];
        let Some((name, _)) = self.0.pop() else {
            return Ok(());
        };
        if name == "cache" || OF_ONE_TYPE.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(MountError::FieldOfOther(name, kind));
        }
        Err(MountError::Field(name))
    }
}

impl FromStr for CacheMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "always" => Ok(Self::Always),
            _ => Err(()),
        }
    }
}

/// Checks that no two mounts are at one place, and puts those before that are above others.
///
/// # Errors
///
/// [`MountError::Twice`].
pub fn in_order(mut mounts: Vec<TypedMount>) -> Result<Vec<TypedMount>, MountError> {
    mounts.sort_by(|one, other| {
        let depth = |mount: &TypedMount| mount.destination.split('/').count();
        let one = (depth(one), &one.destination);
        one.cmp(&(depth(other), &other.destination))
    });
    for pair in mounts.windows(2) {
        if let [one, other] = pair
            && one.destination == other.destination
        {
            return Err(MountError::Twice(one.destination.clone()));
        }
    }
    Ok(mounts)
}

/// A place in the container, as [`TypedMount::destination`] has it.
///
/// # Errors
///
/// [`MountError::Destination`] if it is no absolute path, or the root.
pub fn destination(text: &str) -> Result<String, MountError> {
    let wrong = || MountError::Destination(text.to_owned());
    if !text.starts_with('/') || text.contains('\0') {
        return Err(wrong());
    }
    let path = clean(Path::new(text));
    if path == Path::new("/") {
        return Err(wrong());
    }
    path.into_os_string().into_string().map_err(|_| wrong())
}

/// An absolute path without `.` and `..`, which go one up wherever links may lead.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => (),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> Result<TypedMount, MountError> {
        TypedMount::of_volume_flag(text, Path::new("/home/me"))
    }

    fn bind_of(mount: &TypedMount) -> &Bind {
        match &mount.source {
            TypedSource::Bind(bind) => bind,
            other => panic!("no bind: {other:?}"),
        }
    }

    fn volume_of(mount: &TypedMount) -> &NewVolume {
        match &mount.source {
            TypedSource::Volume(volume) => volume,
            other => panic!("no volume: {other:?}"),
        }
    }

    #[test]
    fn a_path_is_a_directory_of_the_host_and_a_name_a_volume() {
        let mount = volume("/srv//www/../data:/data/:ro").unwrap();
        assert_eq!(mount.destination, "/data");
        assert!(mount.read_only);
        assert_eq!(bind_of(&mount).source, Path::new("/srv/data"));
        assert!(bind_of(&mount).creates_source);

        let mount = volume("./src:/src:z,rw,rslave,cache=none").unwrap();
        assert_eq!(bind_of(&mount).source, Path::new("/home/me/src"));
        assert_eq!(bind_of(&mount).cache, CacheMode::None);
        assert_eq!(bind_of(&mount).propagation.as_deref(), Some("rslave"));
        assert!(!mount.read_only);

        let mount = volume("data:/var/lib/data:nocopy,U").unwrap();
        let name = volume_of(&mount).name.as_ref().map(VolumeName::as_str);
        assert_eq!(name, Some("data"));
        assert!(!volume_of(&mount).copies && volume_of(&mount).changes_owner);

        let mount = volume("/cache").unwrap();
        assert_eq!(volume_of(&mount).name, None);
        assert!(volume_of(&mount).copies);
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for text in ["", ":", "a:b:c:d", ":/x", "data:"] {
            assert_eq!(volume(text), Err(MountError::NotAVolume(text.to_owned())));
        }
        for place in ["x", "data:x", "data:/", "data:/..", "/"] {
            assert!(
                matches!(volume(place), Err(MountError::Destination(_))),
                "{place}"
            );
        }
        for source in ["a/b:/x", "-x:/x", "a:/x", "\u{e4}b:/x"] {
            assert!(
                matches!(volume(source), Err(MountError::Source(_))),
                "{source}"
            );
        }
        for option in [
            "data:/x:fast",
            "data:/x:cache=none",
            "/y:/x:nocopy",
            "/y:/x:cache=most",
        ] {
            assert!(
                matches!(volume(option), Err(MountError::Option(_))),
                "{option}"
            );
        }
        assert!(matches!(
            volume("data:/x:ro,rw"),
            Err(MountError::Conflict(..))
        ));
    }

    #[test]
    fn mount_takes_the_fields_of_its_type() {
        let mount = TypedMount::of_mount_flag(
            "type=bind,src=/srv/www,dst=/www,readonly,bind-propagation=rprivate,consistency=cached",
        )
        .unwrap();
        assert!(mount.read_only && !bind_of(&mount).creates_source);

        let mount = TypedMount::of_mount_flag(
            "source=data,target=/data,ro=false,volume-nocopy=true,volume-opt=size=2g,volume-label=a=b,volume-driver=local,volume-subpath=x/y",
        )
        .unwrap();
        let volume = volume_of(&mount);
        assert_eq!(volume.size_bytes, Some(2 << 30));
        assert_eq!(volume.labels, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(volume.subpath.as_deref(), Some("x/y"));
        assert!(!volume.copies && !mount.read_only);

        let mount =
            TypedMount::of_mount_flag("type=tmpfs,destination=/run,tmpfs-size=64m,tmpfs-mode=1777");
        assert_eq!(
            mount.unwrap().source,
            TypedSource::Tmpfs(NewTmpfs {
                size_bytes: Some(64 << 20),
                mode: Some(0o1777),
                options: Vec::new(),
            })
        );

        let mount = TypedMount::of_mount_flag("type=bind,\"source=/a,b\",destination=/c").unwrap();
        assert_eq!(bind_of(&mount).source, Path::new("/a,b"));
    }

    #[test]
    fn what_is_no_mount_is_refused() {
        let refused = |text: &str| TypedMount::of_mount_flag(text).expect_err(text);
        assert_eq!(
            refused("type=npipe,dst=/x"),
            MountError::Type("npipe".to_owned())
        );
        assert_eq!(
            refused("type=bind,src=/x"),
            MountError::Missing("bind", "destination")
        );
        assert_eq!(
            refused("type=bind,dst=/x"),
            MountError::Missing("bind", "source")
        );
        assert_eq!(
            refused("type=bind,src=x,dst=/x"),
            MountError::RelativeSource("x".to_owned())
        );
        assert_eq!(
            refused("type=volume,dst=/x,tmpfs-size=1m"),
            MountError::FieldOfOther("tmpfs-size".to_owned(), "volume")
        );
        assert_eq!(
            refused("type=tmpfs,src=a,dst=/x"),
            MountError::FieldOfOther("source".to_owned(), "tmpfs")
        );
        assert_eq!(
            refused("type=volume,dst=/x,colour=red"),
            MountError::Field("colour".to_owned())
        );
        assert_eq!(
            refused("dst=/x,volume-driver=nfs"),
            MountError::Driver("nfs".to_owned())
        );
        for text in [
            "dst=/x,readonly=perhaps",
            "dst=/x,volume-opt=colour=red",
            "dst=/x,volume-subpath=../y",
            "type=tmpfs,dst=/x,tmpfs-mode=99999",
            "type=tmpfs,dst=/x,tmpfs-size",
        ] {
            assert!(matches!(refused(text), MountError::Value { .. }), "{text}");
        }
        refused("\"type=bind");
    }

    #[test]
    fn one_place_has_one_mount_and_what_is_above_comes_first() {
        let mounts =
            |places: &[&str]| in_order(places.iter().map(|at| volume(at).unwrap()).collect());
        let sorted = mounts(&["/a/b/c", "/z", "/a/b"]).unwrap();
        let places: Vec<&str> = sorted
            .iter()
            .map(|mount| mount.destination.as_str())
            .collect();
        assert_eq!(places, ["/z", "/a/b", "/a/b/c"]);
        assert_eq!(
            mounts(&["/a", "/b", "/a/"]),
            Err(MountError::Twice("/a".to_owned()))
        );
    }
}
