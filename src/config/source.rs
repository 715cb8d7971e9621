//! A configuration file over time: what is in it now, and whether it, or a
//! certificate or key file that it names, has become another.
//!
//! # Implementation
//! Files are looked at, not waited for: a few `stat` calls per look see every
//! way in which a file can change (written in place, renamed over, a symbolic
//! link somewhere on the path swapped, the file system remote), which notices
//! from the kernel do not. A change counts once two looks in a row have seen
//! the same, so that a file half written is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, Overrides};

/// A file, what was last made of it, and how its files looked then.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    overrides: Overrides,
    /// Of the configuration that was given out last.
    text: String,
    /// The files that this configuration names.
    files: BTreeSet<PathBuf>,
    watch: bool,
    /// Whether the file was bad when it was read last.
    failed: bool,
    /// How everything looked when it was last read.
    known: Stamps,
    /// How it looked since, if otherwise.
    changing: Option<Stamps>,
}

type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Two files that look alike are taken for the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of what a path leads to. `None`: nothing that can be seen.
    fn of(path: &Path) -> Option<Self> {
        let seen = fs::metadata(path).ok()?;
        Some(Self {
            device: seen.dev(),
            inode: seen.ino(),
            size: seen.size(),
            modified: (seen.mtime(), seen.mtime_nsec()),
            changed: (seen.ctime(), seen.ctime_nsec()),
        })
    }
}

impl Source {
    /// Reads and checks a file, as [`Config::load`] does.
    ///
    /// # Errors
    /// Every problem, or the one that it cannot be read.
    pub fn open(path: &Path, overrides: Overrides) -> Result<(Self, Config), ConfigError> {
        let mut source = Self {
            path: path.to_owned(),
            overrides,
            text: String::new(),
            files: BTreeSet::new(),
            watch: true,
            failed: false,
            known: Stamps::new(),
            changing: None,
        };
        let config = source.load()?;
        Ok((source, config))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and checks the file anew.
    ///
    /// # Errors
    /// Every problem. What was loaded before stays what
    /// [`look`](Self::look) goes back to.
    pub fn load(&mut self) -> Result<Config, ConfigError> {
        // Before anything is read: what changes meanwhile, the next look sees.
        let now = self.stamps();
        self.read(&now)
    }

    fn read(&mut self, now: &Stamps) -> Result<Config, ConfigError> {
        self.changing = None;
        let stamp = now.get(&self.path).copied();
        self.known.insert(
            self.path.clone(),
            stamp.unwrap_or_else(|| Stamp::of(&self.path)),
        );
        let read = Config::read(&self.path);
        self.failed = read.is_err();
        let text = read?;
        let config = self.check(&text, now);
        self.failed = config.is_err();
        if config.is_ok() {
            self.text = text;
        }
        config
    }

    fn check(&mut self, text: &str, now: &Stamps) -> Result<Config, ConfigError> {
        let checked = Config::parse_from(text, &self.overrides, Some(&self.path));
        let stamp = |path: &PathBuf| now.get(path).copied().unwrap_or_else(|| Stamp::of(path));
        match &checked {
            Ok(config) => {
                self.watch = config.watch;
                self.files.clone_from(&config.files);
                let path = self.known.remove_entry(&self.path);
                self.known = config.files.iter().map(|p| (p.clone(), stamp(p))).collect();
                self.known.extend(path);
            }
            // What runs keeps its files, and news of them is news still; and
            // whoever mends the others is waited for.
            Err(error) => {
                for path in error.files.difference(&self.files) {
                    self.known.insert(path.clone(), stamp(path));
                }
            }
        }
        checked
    }

    fn stamps(&self) -> Stamps {
        let paths = self.known.keys();
        paths.map(|path| (path.clone(), Stamp::of(path))).collect()
    }

    /// Looks whether something has changed, and if so, and if it has come to
    /// rest since the last look, what that makes. To be called now and then.
    ///
    /// The file itself is followed only if it asks for that
    /// (`providers.file.watch`); certificates and keys always are, under the
    /// text that was loaded last.
    pub fn look(&mut self) -> Option<Result<Config, ConfigError>> {
        let now = self.stamps();
        let changed = |path: &PathBuf| self.known.get(path) != now.get(path);
        if !now.keys().any(changed) {
            self.changing = None;
            return None;
        }
        if self.changing.as_ref() != Some(&now) {
            self.changing = Some(now);
            return None;
        }
        let file = changed(&self.path);
        let running = self.files.iter().any(changed);
        self.changing = None;
        if self.watch && (file || self.failed) {
            let loaded = self.read(&now);
            // Its problems have been told, and are the same.
            if loaded.is_ok() || file {
                return Some(loaded);
            }
        }
        if running {
            let text = self.text.clone();
            let checked = self.check(&text, &now);
            if checked.is_err() {
                self.known.extend(now);
            }
            return Some(checked);
        }
        self.known.extend(now);
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code: a panic is how it fails")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const CA: &str = include_str!("../../fixtures/pki/ca.pem");
    const OTHER_CA: &str = include_str!("../../fixtures/pki/other-ca.pem");

    /// A directory that is removed at the end.
    struct Room(PathBuf);

    impl Room {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "svidgate-source-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }

        /// As editors and deployers do: written beside it, renamed over it.
        fn replace(&self, name: &str, text: &str) {
            let beside = self.write("beside", text);
            fs::rename(beside, self.0.join(name)).unwrap();
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn text(port: u16, more: &str) -> String {
        format!(
            "{more}\nentryPoints.web.address = \"127.0.0.1:{port}\"\n\
             http.routers.r = {{ rule = \"PathPrefix(`/`)\", service = \"s\" }}\n\
             http.services.s.loadBalancer.servers = [{{ url = \"http://127.0.0.1:9\" }}]\n"
        )
    }

    fn open(path: &Path) -> (Source, Config) {
        Source::open(path, Overrides::default()).unwrap()
    }

    fn port(looked: Option<Result<Config, ConfigError>>) -> Option<u16> {
        let config = looked?.unwrap();
        config.entry_points.first().map(|it| it.address.port())
    }

    #[test]
    fn a_change_counts_once_it_has_come_to_rest() {
        let room = Room::new();
        let path = room.write("file.toml", &text(1, ""));
        let (mut source, _) = open(&path);
        assert_eq!(port(source.look()), None);
        room.replace("file.toml", &text(2, ""));
        assert_eq!(port(source.look()), None);
        // It is still being written.
        room.replace("file.toml", &text(33, ""));
        assert_eq!(port(source.look()), None);
        assert_eq!(port(source.look()), Some(33));
        assert_eq!(port(source.look()), None);
        // In place.
        room.write("file.toml", &text(444, ""));
        assert_eq!(port(source.look()), None);
        assert_eq!(port(source.look()), Some(444));
        assert_eq!(port(source.look()), None);
    }

    #[test]
    fn a_swapped_link_on_the_path_is_a_change() {
        let room = Room::new();
        for (name, port) in [("v1", 1), ("v2", 2)] {
            fs::create_dir(room.0.join(name)).unwrap();
            room.write(&format!("{name}/file.toml"), &text(port, ""));
        }
        let link = |to: &str| {
            let fresh = room.0.join("fresh");
            std::os::unix::fs::symlink(to, &fresh).unwrap();
            fs::rename(fresh, room.0.join("data")).unwrap();
        };
        link("v1");
        let path = room.0.join("file.toml");
        std::os::unix::fs::symlink("data/file.toml", &path).unwrap();
        let (mut source, _) = open(&path);
        link("v2");
        assert_eq!(port(source.look()), None);
        assert_eq!(port(source.look()), Some(2));
    }

    #[test]
    fn a_bad_file_is_reported_once_and_a_good_one_found_after_it() {
        let room = Room::new();
        let path = room.write("file.toml", &text(1, ""));
        let (mut source, _) = open(&path);
        room.replace("file.toml", "entryPoints = 7");
        assert!(source.look().is_none());
        let error = source.look().unwrap().unwrap_err();
        assert!(error.to_string().contains("entryPoints"), "{error}");
        assert!(source.look().is_none());
        fs::remove_file(&path).unwrap();
        assert!(source.look().is_none());
        let error = source.look().unwrap().unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
        assert!(source.look().is_none());
        room.replace("file.toml", &text(5, ""));
        assert!(source.look().is_none());
        assert_eq!(port(source.look()), Some(5));
    }

    #[test]
    fn without_watch_the_file_waits_and_its_certificates_do_not() {
        let room = Room::new();
        let roots = room.write("ca.pem", CA);
        let more = format!(
            "providers.file.watch = false\nserversTransport.rootCAs = [{:?}]",
            roots.to_str().unwrap()
        );
        let path = room.write("file.toml", &text(1, &more));
        let (mut source, config) = open(&path);
        assert_eq!(config.files, BTreeSet::from([roots]));
        room.replace("file.toml", &text(2, &more));
        assert!(source.look().is_none());
        assert!(source.look().is_none());
        // A new certificate, and the old text.
        room.replace("ca.pem", OTHER_CA);
        assert!(source.look().is_none());
        assert_eq!(port(source.look()), Some(1));
        assert!(source.look().is_none());
        // Until it is asked for.
        assert_eq!(port(Some(source.load())), Some(2));
    }

    #[test]
    fn a_certificate_that_was_missing_is_waited_for() {
        let room = Room::new();
        let path = room.write("file.toml", &text(1, ""));
        let (mut source, _) = open(&path);
        let roots = room.0.join("ca.pem");
        let more = format!("serversTransport.rootCAs = [{:?}]", roots.to_str().unwrap());
        room.replace("file.toml", &text(2, &more));
        assert!(source.look().is_none());
        assert!(source.look().unwrap().is_err());
        room.replace("ca.pem", CA);
        assert!(source.look().is_none());
        assert_eq!(port(source.look()), Some(2));
    }
}
