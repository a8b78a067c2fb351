//! `vmm cp`: files from and to a machine, by docker's rules.
//!
//! What comes from a machine was written by its guest: it is unpacked below the destination and nowhere else, by no link that came
//! with it, and without devices.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use archive::{
    Destination, Flavour, Follow, Kind, Made, Member, Owners, PackError, Packer, Place, PlaceError,
    Source, Typed, UnpackError, Unpacker, Writer, components,
};
use protocol::{CopySource, FilesTask};

use super::destination;
use super::export;
use super::output::spell_size;
use super::transfer::{Transfer, TransferError};
use crate::cli::CpArgs;
use crate::dirs::Directories;
use crate::image::{TarError, TarInput, TarKind, TarMember, TarReader};
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{Machine, Registry};

/// How much is passed on at once.
const BUFFER_BYTES: usize = 128 << 10;

/// Copies files.
pub(super) fn run(arguments: &CpArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let find = |reference: &str| -> Result<Machine, Report> {
        Ok(Registry::open(directories.machines())?.find(reference)?)
    };
    let copied_bytes = match (Side::parse(&arguments.from)?, Side::parse(&arguments.to)?) {
        (Side::Machine { .. }, Side::Machine { .. }) => return Err(CpError::TwoMachines.into()),
        (Side::Machine { machine, path }, Side::Stream) => {
            if io::stdout().is_terminal() {
                return Err(CpError::ToTerminal.into());
            }
            let (machine, task) = (find(&machine)?, read_task(path, arguments));
            destination::write_to_stdout(|output| {
                export::pass_on(&machine, &task, output, directories)
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        (Side::Machine { machine, path }, Side::Local(to)) => {
            copy_out(&find(&machine)?, path, &to, arguments, directories)?
        }
        (Side::Stream, Side::Machine { machine, path }) => {
            if io::stdin().is_terminal() {
                return Err(CpError::FromTerminal.into());
            }
            let source = CopySource::Archive;
            copy_in(
                &find(&machine)?,
                path,
                source,
                arguments,
                directories,
                |writer| repack(io::stdin().lock(), writer),
            )?
        }
        (Side::Local(from), Side::Machine { machine, path }) => {
            let local = LocalSource::find(&from, arguments.follow_link)?;
            let source = local.source.clone();
            copy_in(
                &find(&machine)?,
                path,
                source,
                arguments,
                directories,
                |writer| local.pack(writer),
            )?
        }
        (Side::Local(_) | Side::Stream, Side::Local(_) | Side::Stream) => {
            return Err(CpError::NoMachine.into());
        }
    };
    // As docker does.
    if !arguments.quiet && io::stdout().is_terminal() {
        let to = arguments.to.display();
        let size = spell_size(copied_bytes);
        let _ = writeln!(io::stderr(), "Successfully copied {size} to {to}");
    }
    Ok(ExitCode::SUCCESS)
}

/// One of the two arguments.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// A path of a machine.
    Machine { machine: String, path: String },
    /// A path here.
    Local(PathBuf),
    /// Standard input or output.
    Stream,
}

impl Side {
    /// Tells a machine's path from one here: that begins with a slash or a point, or has no colon.
    fn parse(argument: &OsStr) -> Result<Self, CpError> {
        let bytes = argument.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        let is_local = bytes.is_empty() || bytes.starts_with(b"/") || bytes.starts_with(b".");
        let colon = bytes.iter().position(|byte| *byte == b':');
        let Some(colon) = colon.filter(|_| !is_local) else {
            return Ok(Self::Local(argument.into()));
        };
        let text = argument.to_str().ok_or(CpError::NoText)?;
        let (machine, path) = text.split_at(colon);
        let path = path.strip_prefix(':').unwrap_or_default();
        if machine.is_empty() || path.is_empty() {
            return Err(CpError::Incomplete(text.to_owned()));
        }
        Ok(Self::Machine {
            machine: machine.to_owned(),
            path: path.to_owned(),
        })
    }
}

fn read_task(path: String, arguments: &CpArgs) -> FilesTask {
    FilesTask::Read {
        path,
        follow: arguments.follow_link,
    }
}

/// Copies from a machine to here. Says how much came.
fn copy_out(
    machine: &Machine,
    path: String,
    to: &Path,
    arguments: &CpArgs,
    directories: &Directories,
) -> Result<u64, Report> {
    let destination = LocalDestination::find(to)?;
    let typed = Typed::new(path.as_bytes());
    let mut transfer = Transfer::begin(machine, &read_task(path, arguments), directories)?;
    let stream = Counted::new(transfer.output()?);
    let mut reader = TarReader::new(BufReader::with_capacity(BUFFER_BYTES, stream), ());
    let unpacked = unpack(&mut reader, &typed, &destination, arguments.archive);
    let (input, ()) = reader.into_parts();
    let count = input.get_ref().bytes;
    match unpacked {
        Ok(()) => transfer.end()?,
        // That it broke off has a reason, which only the guest knows.
        Err(CpError::Transfer(failure)) => return Err(transfer.give_up(failure).into()),
        Err(failure) => return Err(failure.into()),
    }
    Ok(count)
}

impl<R: Read> TarInput for BufReader<R> {}

/// Unpacks what comes from a machine. It has the name that was asked for, whatever the guest calls it.
fn unpack<R: Read>(
    reader: &mut TarReader<BufReader<R>, ()>,
    typed: &Typed,
    destination: &LocalDestination,
    keeps_owners: bool,
) -> Result<(), CpError> {
    let next = |reader: &mut TarReader<_, ()>| reader.next_member().map_err(of_stream);
    let first = next(reader)?.ok_or(TransferError::OtherThings)?;
    let base = match typed.name() {
        Some(name) if !typed.wants_contents => name.to_vec(),
        _ => Vec::new(),
    };
    if components(&first.path)
        .map_err(UnpackError::from)?
        .join(&b'/')
        != base
    {
        return Err(TransferError::OtherThings.into());
    }
    let source = match (first.kind, base.is_empty()) {
        (TarKind::Directory, true) => Source::Contents,
        (TarKind::Directory, false) => Source::Directory(base.clone()),
        (_, false) => Source::File(base.clone()),
        (_, true) => return Err(TransferError::OtherThings.into()),
    };
    let (directory, name) = destination.place(&source)?;
    let owners = match keeps_owners {
        true => Owners::Kept,
        false => Owners::Unpacking,
    };
    // What the stream calls `base` is `name` here.
    let placed = |path: &[u8]| -> Result<Vec<u8>, CpError> {
        let parts = components(path).map_err(UnpackError::from)?;
        let below = match (base.is_empty(), parts.split_first()) {
            (true, _) => parts.as_slice(),
            (false, Some((first, below))) if *first == base => below,
            (false, _) => return Err(TransferError::OtherThings.into()),
        };
        let own = Some(name.as_slice()).filter(|name| !name.is_empty());
        let path: Vec<&[u8]> = own.into_iter().chain(below.iter().copied()).collect();
        Ok(path.join(&b'/'))
    };
    let mut unpacker = Unpacker::new(directory.as_fd(), Follow::Nothing, owners);
    let mut left_out = LeftOut::default();
    let mut member = Some(first);
    while let Some(next_member) = member {
        let mut made = member_of(next_member)?;
        if made.is_sparse {
            return Err(TransferError::OtherThings.into());
        }
        let shown = std::mem::take(&mut made.member.path);
        made.member.path = placed(&shown)?;
        if let Kind::HardLink(first) = &mut made.member.kind {
            *first = placed(first)?;
        }
        let mut content = Content {
            reader,
            failure: None,
        };
        let result = unpacker.member(&made.member, &mut content);
        if let Some(failure) = content.failure {
            return Err(of_stream(failure));
        }
        if result? == Made::IsDevice {
            left_out.add(&shown);
        }
        member = next(reader)?;
    }
    unpacker.finish()?;
    left_out.end();
    Ok(())
}

fn of_stream(error: TarError) -> CpError {
    CpError::Transfer(TransferError::Archive(error))
}

/// The content of the current member.
struct Content<'a, R: Read> {
    reader: &'a mut TarReader<BufReader<R>, ()>,
    failure: Option<TarError>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read_content(buffer).map_err(|error| {
            self.failure = Some(error);
            io::ErrorKind::InvalidData.into()
        })
    }
}

/// A member as it can be made.
struct Understood {
    member: Member,
    is_sparse: bool,
}

fn member_of(member: TarMember) -> Result<Understood, CpError> {
    let number = |number: u64| u32::try_from(number).map_err(|_| CpError::Number);
    let device = |(major, minor)| Ok::<_, CpError>((number(major)?, number(minor)?));
    let is_sparse = member.sparse.is_some();
    let kind = match member.kind {
        TarKind::Regular => Kind::File,
        TarKind::Directory => Kind::Directory,
        TarKind::Symlink => Kind::Symlink(member.link),
        TarKind::HardLink => Kind::HardLink(member.link),
        TarKind::Fifo => Kind::Fifo,
        TarKind::CharacterDevice => {
            let (major, minor) = device(member.device)?;
            Kind::CharacterDevice(major, minor)
        }
        TarKind::BlockDevice => {
            let (major, minor) = device(member.device)?;
            Kind::BlockDevice(major, minor)
        }
        TarKind::Other(_) => return Err(CpError::UnknownKind),
    };
    let size_bytes = match kind {
        Kind::File => member.size,
        _ => 0,
    };
    Ok(Understood {
        member: Member {
            path: member.path,
            kind,
            mode: number(member.mode & 0o7777)?,
            uid: number(member.uid)?,
            gid: number(member.gid)?,
            mtime_s: member.mtime.seconds,
            size_bytes,
            xattrs: Vec::new(),
        },
        is_sparse,
    })
}

/// Devices that are not made here.
#[derive(Debug, Default)]
struct LeftOut {
    count: usize,
}

impl LeftOut {
    /// How many are named.
    const NAMED: usize = 20;

    fn add(&mut self, path: &[u8]) {
        self.count = self.count.saturating_add(1);
        if self.count <= Self::NAMED {
            let path = String::from_utf8_lossy(path).replace(char::is_control, "\u{fffd}");
            tracing::warn!("`{path}` is a device, and was left out");
        }
    }

    fn end(&self) {
        if self.count > Self::NAMED {
            tracing::warn!("{} more devices were left out", self.count - Self::NAMED);
        }
    }
}

/// What is where the copy is to go.
struct LocalDestination {
    typed: PathBuf,
    destination: Destination,
}

impl LocalDestination {
    fn find(to: &Path) -> Result<Self, CpError> {
        let wants_directory = Typed::new(to.as_os_str().as_bytes()).wants_directory;
        let (typed, destination) = match fs::metadata(to) {
            Ok(metadata) if metadata.is_dir() => (to.to_owned(), Destination::Directory),
            // What a link leads to is replaced, not the link.
            Ok(metadata) if metadata.is_file() => {
                let path = fs::canonicalize(to).map_err(|error| failed(to, error))?;
                (path, Destination::File { wants_directory })
            }
            Ok(_) => return Err(CpError::Irregular(to.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (to.to_owned(), Destination::Nothing { wants_directory })
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(PlaceError::NotADirectory(to.display().to_string()).into());
            }
            Err(error) => return Err(failed(to, error)),
        };
        Ok(Self { typed, destination })
    }

    /// The directory that the first member goes to, and its name there; none if it is merged into that.
    fn place(&self, source: &Source) -> Result<(OwnedFd, Vec<u8>), CpError> {
        let open = |path: &Path| {
            let path = match path.as_os_str().is_empty() {
                true => Path::new("."),
                false => path,
            };
            let directory = File::open(path).map_err(|error| failed(path, error))?;
            Ok::<_, CpError>(OwnedFd::from(directory))
        };
        match source.place(self.destination, self.typed.as_os_str().as_bytes())? {
            Place::Merged => Ok((open(&self.typed)?, Vec::new())),
            Place::Inside(name) => Ok((open(&self.typed)?, name)),
            Place::AtDestination => {
                let irregular = || CpError::Irregular(self.typed.clone());
                let name = self.typed.file_name().ok_or_else(irregular)?;
                let parent = self.typed.parent().unwrap_or(Path::new("."));
                Ok((open(parent)?, name.as_bytes().to_vec()))
            }
        }
    }
}

/// Copies from here to a machine. Says how much was sent.
fn copy_in(
    machine: &Machine,
    path: String,
    source: CopySource,
    arguments: &CpArgs,
    directories: &Directories,
    pack: impl FnOnce(&mut dyn Write) -> Result<(), CpError>,
) -> Result<u64, Report> {
    let task = FilesTask::Write {
        path,
        source,
        keeps_owners: arguments.archive,
    };
    let mut transfer = Transfer::begin(machine, &task, directories)?;
    let mut output = Counted::new(transfer.input()?);
    match pack(&mut output) {
        Ok(()) => {}
        // That it reads no more has a reason, which only the guest knows.
        Err(CpError::Transfer(failure)) => return Err(transfer.give_up(failure).into()),
        Err(failure) => return Err(failure.into()),
    }
    let count = output.bytes;
    transfer.end()?;
    Ok(count)
}

/// What is copied from here.
struct LocalSource {
    path: PathBuf,
    source: CopySource,
    /// Whether a link at its end is what it leads to.
    follow: bool,
}

impl LocalSource {
    fn find(from: &Path, follow: bool) -> Result<Self, CpError> {
        let typed = Typed::new(from.as_os_str().as_bytes());
        let follow = follow || typed.wants_directory;
        let read = |error| failed(from, error);
        let metadata = match follow {
            true => fs::metadata(from).map_err(read)?,
            false => fs::symlink_metadata(from).map_err(read)?,
        };
        if typed.wants_directory && !metadata.is_dir() {
            return Err(PlaceError::NotADirectory(from.display().to_string()).into());
        }
        let name = || -> Result<String, CpError> {
            let own = from.file_name().map(OsString::from);
            let name = match own {
                Some(name) => name,
                // `..` has a name that only the kernel knows.
                None => fs::canonicalize(from)
                    .map_err(read)?
                    .file_name()
                    .map(OsString::from)
                    .unwrap_or_default(),
            };
            name.into_string().map_err(|_| CpError::NoText)
        };
        let source = match metadata.is_dir() {
            true if typed.wants_contents => CopySource::Contents,
            true => CopySource::Directory(name()?),
            false => CopySource::File(name()?),
        };
        Ok(Self {
            path: from.to_owned(),
            source,
            follow,
        })
    }

    fn pack(&self, output: &mut dyn Write) -> Result<(), CpError> {
        let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, output));
        let mut left_out = |remark: &str| tracing::warn!("{remark}, and was left out");
        let mut packer = Packer::new(
            &mut writer,
            Flavour::Copy,
            &|uid, gid| (uid, gid),
            &|_| false,
            &mut left_out,
        );
        let open = |path: &Path| {
            let directory = File::open(path).map_err(|error| failed(path, error))?;
            Ok::<_, CpError>(OwnedFd::from(directory))
        };
        match (&self.source, self.path.file_name()) {
            (CopySource::File(_), Some(name)) => {
                let parent = self
                    .path
                    .parent()
                    .filter(|path| !path.as_os_str().is_empty());
                let parent = open(parent.unwrap_or(Path::new(".")))?;
                packer.pack(parent.as_fd(), name.as_bytes(), self.follow, b".")?;
            }
            _ => packer.directory(&open(&self.path)?, b".")?,
        }
        writer.finish().map(drop).map_err(to_machine)
    }
}

fn to_machine(error: io::Error) -> CpError {
    CpError::Transfer(TransferError::Stream(error))
}

/// Passes an archive of anybody's on as one that the guest understands. Nothing of it is outside of the destination.
fn repack(input: impl Read, output: &mut dyn Write) -> Result<(), CpError> {
    let mut reader = TarReader::new(BufReader::with_capacity(BUFFER_BYTES, input), ());
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, output));
    while let Some(member) = reader.next_member().map_err(CpError::Archive)? {
        let runs = member.sparse.clone();
        let Understood { mut member, .. } = member_of(member)?;
        let parts = components(&member.path).map_err(UnpackError::from)?;
        member.path = match parts.is_empty() {
            true => b".".to_vec(),
            false => parts.join(&b'/'),
        };
        let mut content = Content {
            reader: &mut reader,
            failure: None,
        };
        let written = match runs {
            None => writer.member(&member, &mut content),
            Some(runs) => {
                let runs = runs.iter().map(|run| (run.offset, run.length)).collect();
                let size_bytes = member.size_bytes;
                writer.member(&member, &mut Expanded::new(&mut content, runs, size_bytes))
            }
        };
        if let Some(failure) = content.failure {
            return Err(CpError::Archive(failure));
        }
        written.map_err(to_machine)?;
    }
    writer.finish().map(drop).map_err(to_machine)
}

/// A sparse file with its holes.
struct Expanded<R> {
    input: R,
    /// Where there is data and how much, the last first.
    runs: Vec<(u64, u64)>,
    size_bytes: u64,
    position: u64,
}

impl<R: Read> Expanded<R> {
    fn new(input: R, mut runs: Vec<(u64, u64)>, size_bytes: u64) -> Self {
        runs.reverse();
        Self {
            input,
            runs,
            size_bytes,
            position: 0,
        }
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = |bytes: u64, buffer: &[u8]| {
            usize::try_from(bytes)
                .unwrap_or(usize::MAX)
                .min(buffer.len())
        };
        let next = self.runs.last_mut();
        let count = match next {
            Some((offset, left)) if *offset <= self.position => {
                let wanted = length(*left, buffer);
                let count = self
                    .input
                    .read(buffer.get_mut(..wanted).unwrap_or_default())?;
                let moved = u64::try_from(count).unwrap_or(0);
                *offset = offset.saturating_add(moved);
                *left = left.saturating_sub(moved);
                if *left == 0 {
                    self.runs.pop();
                }
                count
            }
            next => {
                let end = next.map_or(self.size_bytes, |(offset, _)| *offset);
                let wanted = length(end.saturating_sub(self.position), buffer);
                buffer.get_mut(..wanted).unwrap_or_default().fill(0);
                wanted
            }
        };
        self.position = self
            .position
            .saturating_add(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}

/// Counts what passes.
struct Counted<S> {
    stream: S,
    bytes: u64,
}

impl<S> Counted<S> {
    fn new(stream: S) -> Self {
        Self { stream, bytes: 0 }
    }

    fn count(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(0));
    }
}

impl<S: Read> Read for Counted<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).inspect(|count| self.count(*count))
    }
}

impl<S: Write> Write for Counted<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream
            .write(buffer)
            .inspect(|count| self.count(*count))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn failed(path: &Path, source: io::Error) -> CpError {
    CpError::Local {
        path: path.to_owned(),
        source,
    }
}

/// Why nothing, or not all, was copied.
#[derive(Debug, thiserror::Error)]
enum CpError {
    /// Both sides are machines'.
    #[error("files are not copied from one machine to another")]
    TwoMachines,
    /// Neither is.
    #[error("neither of the two paths is a machine's")]
    NoMachine,
    /// Half of a path.
    #[error("`{0}` is not MACHINE:PATH")]
    Incomplete(String),
    /// A name in another encoding.
    #[error("a name that is no UTF-8 cannot be passed on")]
    NoText,
    /// Standard input is a keyboard.
    #[error("standard input is a terminal, not an archive")]
    FromTerminal,
    /// Standard output is a screen.
    #[error("standard output is a terminal, which shows no archive")]
    ToTerminal,
    /// A device, a fifo or a socket.
    #[error("{path} is neither a file nor a directory", path = .0.display())]
    Irregular(PathBuf),
    /// Something here cannot be read or written.
    #[error("cannot use {path}", path = path.display())]
    Local {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the user sends is no archive.
    #[error("standard input cannot be read as an archive")]
    Archive(#[source] TarError),
    /// A number that Linux does not have.
    #[error("the archive has a number that is no owner, device or permission")]
    Number,
    /// Something that is no file.
    #[error("the archive has a member of an unknown kind")]
    UnknownKind,
    /// It cannot go there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It cannot be read here.
    #[error(transparent)]
    Pack(PackError),
    /// It cannot be made here.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The machine's side failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

impl From<PackError> for CpError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Write(error) => to_machine(error),
            error @ PackError::Read { .. } => Self::Pack(error),
        }
    }
}

impl Help for CpError {
    fn help(&self) -> Option<String> {
        match self {
            Self::TwoMachines => Some(
                "copy them here first, or pass them on with `vmm cp A:PATH - | vmm cp - B:PATH`"
                    .to_owned(),
            ),
            Self::NoMachine | Self::Incomplete(_) => {
                Some("name a path of a machine as in web:/etc/hosts".to_owned())
            }
            Self::FromTerminal => {
                Some("redirect standard input from an archive, or name a file".to_owned())
            }
            Self::ToTerminal => Some("redirect standard output, or name a file".to_owned()),
            Self::Transfer(error) => error.help(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn side(text: &str) -> Side {
        Side::parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn a_colon_makes_a_machines_path_unless_it_begins_like_one_here() {
        let machine = |machine: &str, path: &str| Side::Machine {
            machine: machine.to_owned(),
            path: path.to_owned(),
        };

        assert_eq!(side("web:/etc"), machine("web", "/etc"));
        assert_eq!(side("web:a:b"), machine("web", "a:b"));
        assert_eq!(side("./a:b"), Side::Local("./a:b".into()));
        assert_eq!(side("/a:b"), Side::Local("/a:b".into()));
        assert_eq!(side("a"), Side::Local("a".into()));
        assert_eq!(side("-"), Side::Stream);
        assert!(Side::parse(OsStr::new(":/a")).is_err());
        assert!(Side::parse(OsStr::new("web:")).is_err());
    }

    #[test]
    fn holes_are_zeros() {
        let mut file = Expanded::new(&b"abcde"[..], vec![(2, 3), (7, 2)], 10);

        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();

        assert_eq!(bytes, b"\0\0abc\0\0de\0");
    }

    /// What becomes of a guest's file of this name when `asked` is copied into a directory.
    fn copied(asked: &str, sent: &str) -> Result<Vec<OsString>, CpError> {
        let directory = tempfile::tempdir().unwrap();
        let destination = LocalDestination::find(directory.path()).unwrap();
        let member = Member {
            path: sent.into(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            size_bytes: 2,
            xattrs: Vec::new(),
        };
        let mut writer = Writer::new(Vec::new());
        writer.member(&member, &mut &b"hi"[..]).unwrap();
        let archive = writer.finish().unwrap();
        let mut reader = TarReader::new(BufReader::new(archive.as_slice()), ());
        unpack(
            &mut reader,
            &Typed::new(asked.as_bytes()),
            &destination,
            false,
        )?;
        let entries = fs::read_dir(directory.path()).unwrap();
        Ok(entries.map(|entry| entry.unwrap().file_name()).collect())
    }

    #[test]
    fn a_guest_does_not_choose_the_name_of_what_is_copied() {
        let is_refused = |asked, sent| {
            matches!(
                copied(asked, sent),
                Err(CpError::Transfer(TransferError::OtherThings))
            )
        };

        assert_eq!(copied("/etc/motd", "motd").unwrap(), ["motd"]);
        assert_eq!(copied("etc/x/../motd", "./motd").unwrap(), ["motd"]);
        assert!(is_refused("/etc/motd", ".bashrc"));
        assert!(is_refused("/etc/motd", "motd/.bashrc"));
        assert!(is_refused("/etc/motd", "."));
        assert!(is_refused("/etc/.", ".bashrc"));
        assert!(is_refused("/", "etc"));
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_guest_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let directory = tempfile::tempdir().unwrap();
            let destination = LocalDestination::find(directory.path()).unwrap();
            let mut reader = TarReader::new(BufReader::new(bytes.as_slice()), ());
            let _ = unpack(&mut reader, &Typed::new(b"/a"), &destination, false);
            prop_assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }
}
