//! A configuration file over time: what is in it now, and whether it, or a
//! certificate or key file that it names, has become another.
//!
//! # Implementation
//! Files are looked at, not waited for: a few `stat` calls per look see every
//! way in which a file can change (written in place, renamed over, a symbolic
//! link somewhere on the path swapped, the file system remote), which notices
//! from the kernel do not. A change counts once two looks in a row have seen
//! the same, so that a file half written is left alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, Overrides, Problem};

/// A file, what runs of it, and how its files looked when they were read.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    overrides: Overrides,
    running: Candidate,
    /// How the file looked when what was made of it was taken, or refused.
    seen: Option<Stamp>,
    /// The problems of the file that were reported last, and those of what
    /// runs: they are reported once, not at each look.
    told: Vec<Problem>,
    told_running: Vec<Problem>,
    /// How everything looked at the last look, if not as it was taken.
    changing: Option<Stamps>,
}

/// What a [`Config`] was made of. It becomes what runs by
/// [`Source::accept`].
#[derive(Debug, Default)]
pub struct Candidate {
    text: String,
    watch: bool,
    files: Stamps,
    /// How the file looked before it was read.
    seen: Option<Stamp>,
}

/// How files looked. `None`: nothing that can be seen.
pub type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Two files that look alike are taken for the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of what a path leads to. `None`: nothing that can be seen.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
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

type Loaded = Result<(Config, Candidate), ConfigError>;

impl Source {
    /// Reads and checks a file, as [`Config::load`] does. What is given out
    /// runs.
    ///
    /// # Errors
    /// Every problem, or the one that it cannot be read.
    pub fn open(path: &Path, overrides: Overrides) -> Result<(Self, Config), ConfigError> {
        let mut source = Self {
            path: path.to_owned(),
            overrides,
            running: Candidate::default(),
            seen: None,
            told: Vec::new(),
            told_running: Vec::new(),
            changing: None,
        };
        let (config, candidate) = source.load()?;
        source.accept(candidate);
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
    /// Every problem.
    pub fn load(&mut self) -> Loaded {
        self.changing = None;
        // Before it is read: what changes meanwhile, the next look sees.
        let seen = Stamp::of(&self.path);
        let text = Config::read(&self.path);
        let loaded = text.and_then(|text| self.check(text, seen));
        self.told = match &loaded {
            Ok(_) => Vec::new(),
            Err(error) => error.problems.clone(),
        };
        loaded
    }

    fn check(&self, text: String, seen: Option<Stamp>) -> Loaded {
        let config = Config::parse_from(&text, &self.overrides, Some(&self.path))?;
        let candidate = Candidate {
            watch: config.watch,
            files: config.files.clone(),
            text,
            seen,
        };
        Ok((config, candidate))
    }

    /// What was made of this runs now.
    pub fn accept(&mut self, candidate: Candidate) {
        self.seen = candidate.seen;
        self.running = candidate;
    }

    /// It was good, and does not run all the same: what ran before does. It is
    /// tried again when it has changed, or when somebody asks.
    pub fn refuse(&mut self, candidate: &Candidate) {
        self.seen = candidate.seen;
    }

    fn stamps(&self) -> Stamps {
        let all = self.running.files.keys().chain([&self.path]);
        all.map(|path| (path.clone(), Stamp::of(path))).collect()
    }

    /// Looks whether something has changed, and if so, and if it has come to
    /// rest since the last look, what that makes. To be called now and then.
    ///
    /// The file itself is followed only if it asks for that
    /// (`providers.file.watch`); certificates and keys always are, under the
    /// text that runs. What was bad is read again at each look, as what it
    /// lacks may lie elsewhere; but it is reported only once.
    pub fn look(&mut self) -> Option<Loaded> {
        let now = self.stamps();
        let file = now.get(&self.path) != Some(&self.seen);
        let mut files = self.running.files.iter();
        let running = files.any(|(path, then)| now.get(path) != Some(then));
        if !file && !running {
            self.changing = None;
            return None;
        }
        if self.changing.as_ref() != Some(&now) {
            self.changing = Some(now);
            return None;
        }
        self.changing = None;
        if file && self.running.watch {
            let told = std::mem::take(&mut self.told);
            match self.load() {
                // What runs may have to be looked after all the same.
                Err(error) if error.problems == told => {}
                loaded => return Some(loaded),
            }
        }
        if !running {
            return None;
        }
        let told = std::mem::take(&mut self.told_running);
        let checked = self.check(self.running.text.clone(), self.seen);
        if let Err(error) = &checked {
            self.told_running.clone_from(&error.problems);
        }
        Some(checked).filter(|_| self.told_running.is_empty() || self.told_running != told)
    }
}

#[cfg(test)]
#[path = "../../tests/support/scratch.rs"]
#[allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared with the integration tests"
)]
mod scratch;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code: a panic is how it fails")]
mod tests {
    use super::scratch::Scratch;
    use super::*;

    const CA: &str = include_str!("../../fixtures/pki/ca.pem");
    const OTHER_CA: &str = include_str!("../../fixtures/pki/other-ca.pem");

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

    /// Accepts what a look has found, and tells its port.
    fn look(source: &mut Source) -> Option<u16> {
        let (config, candidate) = source.look()?.unwrap();
        source.accept(candidate);
        config.entry_points.first().map(|it| it.address.port())
    }

    #[test]
    fn a_change_counts_once_it_has_come_to_rest() {
        let room = Scratch::new();
        let path = room.file("file.toml", &text(1, ""));
        let (mut source, _) = open(&path);
        assert_eq!(look(&mut source), None);
        room.replace("file.toml", &text(2, ""));
        assert_eq!(look(&mut source), None);
        // It is still being written.
        room.replace("file.toml", &text(33, ""));
        assert_eq!(look(&mut source), None);
        assert_eq!(look(&mut source), Some(33));
        assert_eq!(look(&mut source), None);
        // In place.
        room.file("file.toml", &text(444, ""));
        assert_eq!(look(&mut source), None);
        assert_eq!(look(&mut source), Some(444));
        assert_eq!(look(&mut source), None);
    }

    #[test]
    fn a_swapped_link_on_the_path_is_a_change() {
        let room = Scratch::new();
        for (name, port) in [("v1", 1), ("v2", 2)] {
            fs::create_dir(room.path().join(name)).unwrap();
            room.file(&format!("{name}/file.toml"), &text(port, ""));
        }
        let link = |to: &str| {
            let fresh = room.path().join("fresh");
            std::os::unix::fs::symlink(to, &fresh).unwrap();
            fs::rename(fresh, room.path().join("data")).unwrap();
        };
        link("v1");
        let path = room.path().join("file.toml");
        std::os::unix::fs::symlink("data/file.toml", &path).unwrap();
        let (mut source, _) = open(&path);
        link("v2");
        assert_eq!(look(&mut source), None);
        assert_eq!(look(&mut source), Some(2));
    }

    #[test]
    fn a_bad_file_is_reported_once_and_a_good_one_found_after_it() {
        let room = Scratch::new();
        let path = room.file("file.toml", &text(1, ""));
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
        assert_eq!(look(&mut source), Some(5));
    }

    #[test]
    fn without_watch_the_file_waits_and_its_certificates_do_not() {
        let room = Scratch::new();
        let roots = room.file("ca.pem", CA);
        let more = format!(
            "providers.file.watch = false\nserversTransport.rootCAs = [{:?}]",
            roots.to_str().unwrap()
        );
        let path = room.file("file.toml", &text(1, &more));
        let (mut source, config) = open(&path);
        assert_eq!(config.files.into_keys().collect::<Vec<_>>(), [roots]);
        room.replace("file.toml", &text(2, &more));
        assert!(source.look().is_none());
        assert!(source.look().is_none());
        // A new certificate, and the old text.
        room.replace("ca.pem", OTHER_CA);
        assert!(source.look().is_none());
        assert_eq!(look(&mut source), Some(1));
        assert!(source.look().is_none());
        // Until it is asked for.
        let (config, _) = source.load().unwrap();
        assert_eq!(config.entry_points[0].address.port(), 2);
    }

    #[test]
    fn a_certificate_that_was_missing_is_waited_for() {
        let room = Scratch::new();
        let path = room.file("file.toml", &text(1, ""));
        let (mut source, _) = open(&path);
        let roots = room.path().join("ca.pem");
        let more = format!("serversTransport.rootCAs = [{:?}]", roots.to_str().unwrap());
        room.replace("file.toml", &text(2, &more));
        assert!(source.look().is_none());
        assert!(source.look().unwrap().is_err());
        room.replace("ca.pem", CA);
        assert!(source.look().is_none());
        assert_eq!(look(&mut source), Some(2));
    }
    #[test]
    fn what_was_refused_does_not_run_by_itself_later() {
        let room = Scratch::new();
        let roots = room.file("ca.pem", CA);
        let more = format!("serversTransport.rootCAs = [{:?}]", roots.to_str().unwrap());
        let path = room.file("file.toml", &text(1, &more));
        let (mut source, _) = open(&path);
        room.replace("file.toml", &text(2, &more));
        assert!(source.look().is_none());
        let (_, candidate) = source.look().unwrap().unwrap();
        // Its address is taken, say.
        source.refuse(&candidate);
        assert!(source.look().is_none());
        assert!(source.look().is_none());
        // A certificate changes: that is for what runs.
        room.replace("ca.pem", OTHER_CA);
        assert!(source.look().is_none());
        assert_eq!(look(&mut source), Some(1));
        assert!(source.look().is_none());
        assert!(source.look().is_none());
        // The file again.
        room.replace("file.toml", &text(3, &more));
        assert!(source.look().is_none());
        assert_eq!(look(&mut source), Some(3));
    }

    #[test]
    fn what_runs_gets_its_certificates_while_the_file_is_bad() {
        let room = Scratch::new();
        let roots = room.file("ca.pem", CA);
        let more = format!("serversTransport.rootCAs = [{:?}]", roots.to_str().unwrap());
        let path = room.file("file.toml", &text(1, &more));
        let (mut source, _) = open(&path);
        room.replace("file.toml", "broken");
        assert!(source.look().is_none());
        assert!(source.look().unwrap().is_err());
        room.replace("ca.pem", OTHER_CA);
        let ports: Vec<_> = (0..8).filter_map(|_| look(&mut source)).collect();
        assert_eq!(ports, [1]);
        // One that is bad is reported once, and found good later.
        room.replace("ca.pem", "no certificate");
        let errors = (0..8).filter_map(|_| source.look()).filter(Result::is_err);
        assert_eq!(errors.count(), 1);
        room.replace("ca.pem", CA);
        let ports: Vec<_> = (0..8).filter_map(|_| look(&mut source)).collect();
        assert_eq!(ports, [1]);
    }

    #[test]
    fn a_missing_file_is_waited_for_while_what_runs_changes() {
        let room = Scratch::new();
        let running = room.file("ca.pem", CA);
        let names = |path: &Path| format!("serversTransport.rootCAs = [{path:?}]");
        let path = room.file("file.toml", &text(1, &names(&running)));
        let (mut source, _) = open(&path);
        let late = room.path().join("late.pem");
        room.replace("file.toml", &text(2, &names(&late)));
        assert!(source.look().is_none());
        assert!(source.look().unwrap().is_err());
        room.replace("ca.pem", OTHER_CA);
        assert!(source.look().is_none());
        assert_eq!(look(&mut source), Some(1));
        room.replace("late.pem", CA);
        assert!(source.look().is_none());
        assert_eq!(look(&mut source), Some(2));
    }
}
