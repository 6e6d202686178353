//! Append and sync through the log, beside `pwrite` + `fdatasync` of the same bytes on a file of the same kind.
//!
//! `cargo bench -p storage --bench wal` prints the time of one durable append of 256 B, 4 KiB, 64 KiB and 1 MiB. Both sides
//! write over pages that the page cache holds, written with zeros and synced before: the log recycles its segments, the
//! plain file is written round and round. `WAL_DIR` names the folder (the system's temporary folder by default; it should
//! be on the disk that is asked about).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

use divan::Bencher;
use divan::counter::BytesCount;
use model::{LogIndex, Term};
use storage::disk::RealDisk;
use storage::wal::{NewRecord, Syncer, Wal, WalOptions};

const SIZES: [usize; 4] = [256, 4 * 1024, 64 * 1024, 1024 * 1024];
const SEGMENT: u64 = 64 * 1024 * 1024;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn folder() -> tempfile::TempDir {
    let parent = std::env::var_os("WAL_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(parent).expect("a folder to write in")
}

/// A log in its steady state: it appends, and what it wrote long ago is purged.
struct Log {
    wal: Wal,
    next: u64,
    payload: Vec<u8>,
    answer: mpsc::SyncSender<()>,
    answered: mpsc::Receiver<()>,
    _dir: tempfile::TempDir,
}

impl Log {
    fn open(syncer: Syncer, payload: usize) -> Log {
        let dir = folder();
        let options = WalOptions {
            disk: Arc::new(RealDisk),
            syncer,
            dir: dir.path().join("log"),
            first_segment_bytes: SEGMENT,
            max_segment_bytes: SEGMENT,
        };
        let (wal, _) = Wal::open(options).expect("a new log");
        let (answer, answered) = mpsc::sync_channel(1);
        let payload = (0..payload).map(|i| (i * 31) as u8).collect();
        let mut log = Log { wal, next: 0, payload, answer, answered, _dir: dir };
        // Until every segment is a used one.
        (0..4 * SEGMENT / (1024 * 1024)).for_each(|_| log.append(&vec![7; 1024 * 1024]));
        log
    }

    fn append(&mut self, payload: &[u8]) {
        let record = NewRecord { kind: 1, term: Term(1), index: LogIndex(self.next), payload };
        let appended = self.wal.append(&[record]).expect("an append");
        let answer = self.answer.clone();
        self.wal.sync_then(
            appended,
            Box::new(move |synced| {
                synced.expect("a sync");
                answer.send(()).expect("the bench waits");
            }),
        );
        self.answered.recv().expect("the callback is called");
        self.next += 1;
        // As often as a flush would.
        if self.wal.bytes() > 2 * SEGMENT {
            self.wal.purge(LogIndex(self.next)).expect("a purge");
        }
    }

    fn bench(mut self, bencher: Bencher<'_, '_>) {
        let payload = std::mem::take(&mut self.payload);
        bencher.counter(BytesCount::new(payload.len())).bench_local(|| self.append(&payload));
    }
}

/// What a replica waits for: the raft task appends, the disk's thread syncs and calls back.
#[divan::bench(args = SIZES)]
fn log_through_the_syncing_thread(bencher: Bencher<'_, '_>, bytes: usize) {
    Log::open(Syncer::start(), bytes).bench(bencher);
}

/// The same without the way to the other thread and back.
#[divan::bench(args = SIZES)]
fn log_on_one_thread(bencher: Bencher<'_, '_>, bytes: usize) {
    Log::open(Syncer::inline(), bytes).bench(bencher);
}

/// The control: the same bytes with `pwrite` and `fdatasync`.
#[divan::bench(args = SIZES)]
fn pwrite_and_fdatasync(bencher: Bencher<'_, '_>, bytes: usize) {
    let dir = folder();
    let file: File = OpenOptions::new().read(true).write(true).create_new(true).open(dir.path().join("file")).expect("a new file");
    let zeros = vec![0; 1024 * 1024];
    for at in (0..SEGMENT).step_by(zeros.len()) {
        file.write_all_at(&zeros, at).expect("zeros");
    }
    file.sync_all().expect("a sync");
    let payload: Vec<u8> = (0..bytes).map(|i| (i * 31) as u8).collect();
    let mut at = 0;
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        file.write_all_at(&payload, at).expect("a write");
        file.sync_data().expect("a sync");
        at = (at + bytes as u64) % SEGMENT;
    });
}
