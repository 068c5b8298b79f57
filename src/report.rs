//! What the program says about itself: one line for a failure, warnings, and the steps of `--debug`.
//!
//! Callers read these in three ways, so the shapes are fixed. containerd decodes the log file as a stream of JSON
//! objects and keeps the last one of level `error`; Podman decodes the whole file as *one* object; conmon forwards a
//! single read() of stderr. Hence: a failure is exactly one line in the log, and when the log is a file also one plain
//! line on stderr; warnings stay out of a JSON file; every line is one write.
//!
//! The log belongs to the parent. Nothing here may be called after the clone in the child.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use crate::sys::errno::Words;

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// `time="…" level=… msg="…"`, as logrus writes it.
    #[default]
    Text,
    /// One JSON object with the keys `level`, `msg` and `time`.
    Json,
}

/// Of what the log is told. In order: each level has what the ones before it have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Error,
    #[default]
    Warning,
    Debug,
}

impl Level {
    /// The word of a log line.
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Debug => "debug",
        }
    }

    /// syslog(3).
    fn priority(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Debug => 7,
        }
    }
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Stderr,
    File(PathBuf),
    /// The system's log, under this name.
    Syslog(String),
    /// systemd's journal, under this name.
    Journal(String),
}

impl Target {
    /// COMPAT: crun's `file:PATH`, `syslog:NAME` and `journald:NAME`; anything else is a path. Without a name it is
    /// `program`.
    pub(crate) fn parse(text: &OsStr, program: &str) -> Self {
        let named = |name: &str| match name {
            "" => program.to_owned(),
            name => name.to_owned(),
        };
        let words = text.to_str().and_then(|text| text.split_once(':'));
        match words {
            Some(("file", path)) => Self::File(path.into()),
            Some(("syslog", name)) => Self::Syslog(named(name)),
            Some(("journald", name)) => Self::Journal(named(name)),
            _ => Self::File(text.into()),
        }
    }

    fn open(&self) -> Result<Sink> {
        Ok(match self {
            Self::Stderr => Sink::Stderr,
            Self::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o644)
                .custom_flags(nix::libc::O_SYNC)
                .open(path)
                .map(Sink::File)
                .with_context(|| format!("open log file {}", path.display()))?,
            Self::Syslog(name) => Sink::Syslog(socket("/dev/log")?, name.clone()),
            Self::Journal(name) => {
                Sink::Journal(socket("/run/systemd/journal/socket")?, name.clone())
            }
        })
    }
}

fn socket(path: &str) -> Result<UnixDatagram> {
    let connected = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(path)?;
        // A log that does not keep up is no reason to wait.
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    connected.with_context(|| format!("open log {path}"))
}

/// An open log.
#[derive(Debug)]
enum Sink {
    Stderr,
    File(File),
    Syslog(UnixDatagram, String),
    Journal(UnixDatagram, String),
}

#[derive(Debug)]
struct Log {
    program: String,
    sink: Sink,
    format: Format,
    level: Level,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the log and fixes how lines are written from here on.
///
/// `program` is the name that messages use. Errors: the log's file cannot be opened. Where a service is not there, stderr
/// takes its place.
pub(crate) fn set_up(program: &str, target: &Target, format: Format, level: Level) -> Result<()> {
    let (sink, absent) = match target.open() {
        // COMPAT: crun goes on without the service, which a container may well have to be started or ended without.
        Err(error) if matches!(target, Target::Syslog(_) | Target::Journal(_)) => {
            (Sink::Stderr, Some(error))
        }
        other => (other?, None),
    };
    // A second call changes nothing: the first log stands for the whole command.
    drop(LOG.set(Log {
        program: program.to_owned(),
        sink,
        format,
        level,
    }));
    if let Some(error) = absent {
        warn(format_args!("log to stderr: {}", sentence(&error)));
    }
    Ok(())
}

/// Whether `--debug` was given; one load, so a step costs nothing when it is off.
pub(crate) fn debugging() -> bool {
    LOG.get().is_some_and(|log| log.level == Level::Debug)
}

/// Reports one step of the work under `--debug`: `debug!("create cgroup {path}")`. The text is not formatted otherwise.
macro_rules! debug {
    ($($text:tt)*) => {
        if $crate::report::debugging() {
            $crate::report::step(module_path!(), file!(), line!(), format_args!($($text)*));
        }
    };
}
pub(crate) use debug;

/// Writes one debug line with the place it comes from. Use `debug!`, which asks first whether anybody listens.
pub(crate) fn step(module: &str, file: &str, line: u32, text: fmt::Arguments<'_>) {
    let Some(log) = LOG.get() else { return };
    let place = format!("{file}:{line}");
    let extra = [("func", module), ("file", place.as_str())];
    log.write(SystemTime::now(), Level::Debug, &text.to_string(), &extra);
}

/// Warns the operator of something that was tolerated.
///
/// With a JSON log file the warning goes to stderr: Podman reads that file as one object, the error's.
pub(crate) fn warn(text: fmt::Arguments<'_>) {
    let text = text.to_string();
    let now = SystemTime::now();
    match LOG.get() {
        Some(log) if log.level < Level::Warning => {}
        Some(log) if !matches!(log.sink, Sink::File(_)) || log.format == Format::Text => {
            log.write(now, Level::Warning, &text, &[]);
        }
        _ => to_stderr(&log_line(Format::Text, now, "warning", &text, &[])),
    }
}

/// Tells the caller alone of something: the bare words on stderr.
pub(crate) fn remark(text: fmt::Arguments<'_>) {
    let mut line = String::new();
    push_one_line(&mut line, &text.to_string());
    line.push('\n');
    to_stderr(&line);
}

/// The error and its causes on one line. The kernel's words stand as engines search for them: lower case, no number.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let causes = error.chain().map(|cause| {
        let errno = cause.downcast_ref::<Errno>().copied().or_else(|| {
            let error = cause.downcast_ref::<io::Error>()?;
            error.raw_os_error().map(Errno::from_raw)
        });
        errno.map_or_else(|| cause.to_string(), |errno| Words(errno).to_string())
    });
    causes.collect::<Vec<_>>().join(": ")
}

/// Reports the failure that ends the command: the error and its causes on one line.
///
/// The line goes to the log and, when the log is a file, also in plain form to stderr. A person at a terminal gets the
/// plain form and the hint below it.
pub(crate) fn fail(error: &anyhow::Error) {
    let message = sentence(error);
    let hint = hint_of(error);
    let extra: &[(&str, &str)] = match &hint {
        Some(hint) => &[("hint", hint)],
        None => &[],
    };
    let now = SystemTime::now();
    match LOG.get() {
        Some(log) if !matches!(log.sink, Sink::Stderr) => {
            log.write(now, Level::Error, &message, extra);
            to_stderr(&plain_line("", &message, None));
        }
        Some(log) if log.format == Format::Json => {
            to_stderr(&log_line(Format::Json, now, "error", &message, extra));
        }
        log if io::stderr().is_terminal() => {
            let program = log.map_or("", |log| log.program.as_str());
            to_stderr(&plain_line(program, &message, hint.as_deref()));
        }
        _ => to_stderr(&log_line(Format::Text, now, "error", &message, extra)),
    }
}

/// Reports the failure that ends a command whose callers are people: one plain line, and the hint below it.
#[cfg(feature = "image")]
pub(crate) fn fail_plainly(program: &str, error: &anyhow::Error) {
    let message = sentence(error);
    to_stderr(&plain_line(program, &message, hint_of(error).as_deref()));
}

/// Context that also knows the cure: `error.context(Hinted::new("open cgroup", "is cgroup2 mounted?"))`.
#[derive(Debug)]
pub(crate) struct Hinted {
    message: String,
    hint: String,
}

impl Hinted {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

impl fmt::Display for Hinted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

fn hint_of(error: &anyhow::Error) -> Option<String> {
    error
        .downcast_ref::<Hinted>()
        .or_else(|| error.chain().find_map(|cause| cause.downcast_ref()))
        .map(|hinted| hinted.hint.clone())
}

impl Log {
    /// One write per line, so that lines of several processes on one file do not mix. A log that cannot be written is
    /// no reason to fail the command.
    fn write(&self, now: SystemTime, level: Level, message: &str, extra: &[(&str, &str)]) {
        let line = || log_line(self.format, now, level.word(), message, extra);
        match &self.sink {
            Sink::Stderr => to_stderr(&line()),
            Sink::File(file) => (&*file).write_all(line().as_bytes()).unwrap_or_default(),
            Sink::Syslog(socket, name) => {
                socket
                    .send(syslog_line(level, name, message).as_bytes())
                    .ok();
            }
            Sink::Journal(socket, name) => {
                let entry = journal_entry(level, name, message, extra);
                socket.send(entry.as_bytes()).ok();
            }
        }
    }
}

/// RFC 3164, as the C library writes it to the local socket: facility "user", no time.
fn syslog_line(level: Level, name: &str, message: &str) -> String {
    let mut line = format!("<{}>{name}: ", 1 << 3 | level.priority());
    push_one_line(&mut line, message);
    line
}

/// systemd's native protocol: a line for each field (systemd, "Native Journal Protocol").
fn journal_entry(level: Level, name: &str, message: &str, extra: &[(&str, &str)]) -> String {
    let mut entry = format!("PRIORITY={}\n", level.priority());
    let fields = [("SYSLOG_IDENTIFIER", name), ("MESSAGE", message)];
    for (key, value) in fields.iter().chain(extra) {
        entry.push_str(&key.to_ascii_uppercase());
        entry.push('=');
        push_one_line(&mut entry, value);
        entry.push('\n');
    }
    entry
}

fn to_stderr(line: &str) {
    io::stderr().write_all(line.as_bytes()).ok();
}

fn plain_line(program: &str, message: &str, hint: Option<&str>) -> String {
    let mut line = String::new();
    if !program.is_empty() && !message.starts_with(program) {
        line.push_str(program);
        line.push_str(": ");
    }
    push_one_line(&mut line, message);
    line.push('\n');
    if let Some(hint) = hint {
        line.push_str("hint: ");
        push_one_line(&mut line, hint);
        line.push('\n');
    }
    line
}

fn push_one_line(line: &mut String, text: &str) {
    line.extend(
        text.trim_end()
            .chars()
            .map(|c| if c == '\n' { ' ' } else { c }),
    );
}

fn log_line(
    format: Format,
    now: SystemTime,
    level: &str,
    message: &str,
    extra: &[(&str, &str)],
) -> String {
    let time = rfc3339_seconds(now);
    let mut line = String::with_capacity(message.len() + 80);
    match format {
        Format::Json => {
            line.push_str("{\"level\":");
            line.push_str(&json_string(level));
            line.push_str(",\"msg\":");
            line.push_str(&json_string(message));
            line.push_str(",\"time\":");
            line.push_str(&json_string(&time));
            for (key, value) in extra {
                line.push(',');
                line.push_str(&json_string(key));
                line.push(':');
                line.push_str(&json_string(value));
            }
            line.push_str("}\n");
        }
        Format::Text => {
            line.push_str("time=\"");
            line.push_str(&time);
            line.push_str("\" level=");
            line.push_str(level);
            line.push_str(" msg=");
            push_quoted(&mut line, message);
            for (key, value) in extra {
                line.push(' ');
                line.push_str(key);
                line.push('=');
                push_quoted(&mut line, value);
            }
            line.push('\n');
        }
    }
    line
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn push_quoted(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            '\r' => line.push_str("\\r"),
            c if c.is_control() => write!(line, "\\u{:04x}", u32::from(c)).unwrap_or_default(),
            c => line.push(c),
        }
    }
    line.push('"');
}

/// A time as RFC 3339 in UTC with nanoseconds, for example `2026-01-02T03:04:05.000000006Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = seconds_text(since.as_secs());
    write!(text, ".{:09}Z", since.subsec_nanos()).ok();
    text
}

fn rfc3339_seconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = seconds_text(since.as_secs());
    text.push('Z');
    text
}

/// `YYYY-MM-DDThh:mm:ss` of a Unix time in the proleptic Gregorian calendar. Years are counted from 1 March, so that
/// the leap day is the last of its year, in eras of 400 years = 146097 days.
fn seconds_text(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let shifted = days + 719_468; // from 0000-03-01 to 1970-01-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn times_are_written_in_utc_with_nanoseconds() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_735_689_599, 999_999_999, "2024-12-31T23:59:59.999999999Z"),
            (1_767_323_045, 6, "2026-01-02T03:04:05.000000006Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(at(seconds, nanos)), text);
        }
    }

    #[test]
    fn json_line_is_one_object_with_the_keys_engines_read() {
        let line = log_line(
            Format::Json,
            at(0, 0),
            "error",
            "a \"b\"\nc",
            &[("hint", "d")],
        );
        assert_eq!(
            line,
            "{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\\nc\",\"time\":\"1970-01-01T00:00:00Z\",\"hint\":\"d\"}\n"
        );
    }

    #[test]
    fn text_line_is_quoted_and_stays_one_line() {
        let line = log_line(Format::Text, at(0, 0), "error", "a \"b\"\nc\u{1b}", &[]);
        assert_eq!(
            line,
            "time=\"1970-01-01T00:00:00Z\" level=error msg=\"a \\\"b\\\"\\nc\\u001b\"\n"
        );
    }

    #[test]
    fn plain_line_names_the_program_once() {
        assert_eq!(
            plain_line("pelagos", "open x: gone\n", Some("look")),
            "pelagos: open x: gone\nhint: look\n"
        );
        assert_eq!(
            plain_line("pelagos", "pelagos create failed: x\ny", None),
            "pelagos create failed: x y\n"
        );
        assert_eq!(plain_line("", "x", None), "x\n");
    }

    #[test]
    fn a_log_is_a_path_or_a_service_with_a_name() {
        for (text, target) in [
            ("/log", Target::File("/log".into())),
            ("file:/log", Target::File("/log".into())),
            ("syslog:web", Target::Syslog("web".into())),
            ("syslog:", Target::Syslog("pelagos".into())),
            ("journald:web", Target::Journal("web".into())),
            ("other:web", Target::File("other:web".into())),
        ] {
            assert_eq!(Target::parse(OsStr::new(text), "pelagos"), target, "{text}");
        }
    }

    #[test]
    fn services_get_the_priority_and_one_line_for_each_field() {
        assert_eq!(syslog_line(Level::Error, "web", "a\nb"), "<11>web: a b");
        assert_eq!(
            journal_entry(Level::Warning, "web", "a\nb", &[("hint", "c")]),
            "PRIORITY=4\nSYSLOG_IDENTIFIER=web\nMESSAGE=a b\nHINT=c\n"
        );
    }

    #[test]
    fn hint_is_found_through_later_context() {
        let error = anyhow::anyhow!("no such file")
            .context(Hinted::new("open cgroup", "mount it"))
            .context("create web");
        assert_eq!(hint_of(&error).as_deref(), Some("mount it"));
        assert_eq!(
            format!("{error:#}"),
            "create web: open cgroup: no such file"
        );
    }
}
