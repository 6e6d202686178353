//! Files that left the manifest and wait to be removed.
//!
//! A compaction's inputs go as soon as no view reads them. What retention or DROP TABLE took out stays on disk for a day,
//! so that a mistake can be undone by hand; it is no backup. The day is counted from when this process first saw the
//! file leave, so a restart starts it anew: files may stay longer, never shorter.

use std::sync::Arc;

use model::Timestamp;

use crate::manifest::FileMeta;

/// How long files stay that retention or DROP TABLE took out.
pub const KEEP_DROPPED_NS: i64 = Timestamp::DAY;

/// Files that left the manifest and wait to be removed. A file is pinned by whoever holds a clone of its `Arc`.
#[derive(Debug, Default)]
pub struct Leaving {
    compacted: Vec<Arc<FileMeta>>,
    dropped: Vec<(Arc<FileMeta>, Option<Timestamp>)>,
    /// Paths of files that were dropped before this process began.
    dropped_before: Vec<String>,
    /// When this process first looked at them.
    began: Option<Timestamp>,
}

impl Leaving {
    /// The file's rows are in other files now.
    pub fn compacted(&mut self, file: Arc<FileMeta>) {
        self.compacted.push(file);
    }

    /// The file's rows were dropped.
    pub fn dropped(&mut self, file: Arc<FileMeta>) {
        self.dropped.push((file, None));
    }

    /// The file's rows were dropped before this process began: nobody reads it.
    pub fn dropped_before(&mut self, path: String) {
        self.dropped_before.push(path);
    }

    /// The file, if it waits.
    pub fn find(&self, path: &str) -> Option<Arc<FileMeta>> {
        let dropped = self.dropped.iter().map(|(file, _)| file);
        self.compacted.iter().chain(dropped).find(|file| file.path == path).cloned()
    }

    /// The path is in use again.
    pub fn forget(&mut self, path: &str) {
        self.compacted.retain(|file| file.path != path);
        self.dropped.retain(|(file, _)| file.path != path);
        self.dropped_before.retain(|before| before != path);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.compacted.is_empty() && self.dropped.is_empty() && self.dropped_before.is_empty()
    }

    /// Gives, once, the paths of the files that can be removed now; while the time is not known, no dropped ones.
    pub fn sweep(&mut self, now: Option<Timestamp>) -> Vec<String> {
        let mut free = Vec::new();
        self.compacted.retain(|file| {
            let pinned = Arc::strong_count(file) > 1;
            if !pinned {
                free.push(file.path.clone());
            }
            pinned
        });
        let Some(now) = now else { return free };
        self.dropped.retain_mut(|(file, seen)| {
            let since = now.0.saturating_sub(seen.get_or_insert(now).0);
            let stays = Arc::strong_count(file) > 1 || since < KEEP_DROPPED_NS;
            if !stays {
                free.push(file.path.clone());
            }
            stays
        });
        let began = self.began.get_or_insert(now).0;
        if now.0.saturating_sub(began) >= KEEP_DROPPED_NS {
            free.append(&mut self.dropped_before);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::file;

    #[test]
    fn a_compacted_file_stays_while_it_is_pinned() {
        let mut leaving = Leaving::default();
        let pinned = Arc::new(file("a", 1, 1..=2));
        let view = pinned.clone();
        leaving.compacted(pinned);
        leaving.compacted(Arc::new(file("b", 1, 3..=4)));
        assert_eq!(leaving.sweep(Some(Timestamp(0))), [file("b", 1, 3..=4).path]);
        drop(view);
        assert_eq!(leaving.sweep(Some(Timestamp(0))), [file("a", 1, 1..=2).path]);
        assert!(leaving.is_empty());
    }

    #[test]
    fn a_dropped_file_stays_for_a_day() {
        let mut leaving = Leaving::default();
        leaving.dropped(Arc::new(file("a", 1, 1..=2)));
        let start = 1_000;
        assert!(leaving.sweep(Some(Timestamp(start))).is_empty());
        assert!(leaving.sweep(Some(Timestamp(start + KEEP_DROPPED_NS - 1))).is_empty());
        assert_eq!(leaving.sweep(Some(Timestamp(start + KEEP_DROPPED_NS))).len(), 1);
        assert!(leaving.is_empty());
    }
}
