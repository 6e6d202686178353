//! A flipped bit or a missing byte is found, named and never served.

use std::path::Path;

use storage::Error;
use storage::disk::FaultyDisk;
use storage::manifest::{FileMeta, Manifest};
use storage::parquet_file::{Effort, inspect, verify};

use crate::support::*;

fn assert_names_it<T: std::fmt::Debug>(result: storage::Result<T>, meta: &FileMeta, what: &str) {
    let error = result.expect_err(what);
    assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error}");
    assert!(error.to_string().contains(&meta.path), "{what}: {error}");
}

#[test]
fn any_flipped_bit_of_a_file_is_found_by_a_scan_and_by_verify() {
    for effort in [Effort::Cheap, Effort::Rich] {
        let disk = FaultyDisk::new(1);
        let rows = random_rows(5, 400, today());
        let meta = write(&files_on(&disk), &rows, Some(TODAY), effort).unwrap();
        let path = Path::new(DIR).join(&meta.path);
        // The first four bytes are the magic, which no reader of this crate looks at.
        let tail = meta.bytes - meta.tail_bytes;
        let places = (4..tail).step_by(37).chain((tail..meta.bytes).step_by(11)).chain(meta.bytes - 12..meta.bytes);
        for at in places {
            let bit = (at % 8) as u8;
            disk.flip_bit(&path, at, bit);
            assert_names_it(read(&files_on(&disk), &meta), &meta, &format!("scan, byte {at}"));
            assert_names_it(verify(&disk, Path::new(DIR), &meta), &meta, &format!("verify, byte {at}"));
            disk.flip_bit(&path, at, bit);
        }
        disk.flip_bit(&path, 0, 3);
        assert_names_it(verify(&disk, Path::new(DIR), &meta), &meta, "verify, byte 0");
        disk.flip_bit(&path, 0, 3);
        assert_eq!(read(&files_on(&disk), &meta).unwrap(), rows);
    }
}

#[test]
fn inspecting_finds_damage_with_the_manifest_everywhere_and_without_it_in_every_page() {
    let disk = FaultyDisk::new(1);
    let rows = random_rows(5, 400, today());
    let meta = write(&files_on(&disk), &rows, Some(TODAY), Effort::Cheap).unwrap();
    let path = Path::new(DIR).join(&meta.path);
    let pages = meta.bytes - meta.tail_bytes;
    for at in (4..pages).step_by(101) {
        disk.flip_bit(&path, at, 1);
        assert_names_it(inspect(&disk, &path), &meta, &format!("byte {at}"));
        disk.flip_bit(&path, at, 1);
    }
    let mut manifest = Manifest::default();
    manifest.files.insert(meta.path.clone(), meta.clone());
    manifest.save(&disk, Path::new(DIR)).unwrap();
    assert_eq!(inspect(&disk, &path).unwrap().named, Some(meta.clone()));
    for at in (0..meta.bytes).step_by(173) {
        disk.flip_bit(&path, at, 1);
        assert_names_it(inspect(&disk, &path), &meta, &format!("byte {at}"));
        disk.flip_bit(&path, at, 1);
    }
}

#[test]
fn a_file_cut_short_is_found() {
    let disk = FaultyDisk::new(1);
    let rows = random_rows(5, 400, today());
    let meta = write(&files_on(&disk), &rows, Some(TODAY), Effort::Cheap).unwrap();
    let path = Path::new(DIR).join(&meta.path);
    let whole = bytes(&disk, &meta);
    for len in (0..whole.len()).step_by(501) {
        disk.set_bytes(&path, whole[..len].to_vec());
        assert_names_it(read(&files_on(&disk), &meta), &meta, &format!("{len} bytes"));
        assert_names_it(verify(&disk, Path::new(DIR), &meta), &meta, &format!("{len} bytes"));
        assert_names_it(inspect(&disk, &path), &meta, &format!("{len} bytes"));
    }
}

#[test]
fn a_bit_that_flips_while_the_file_is_open_is_found_by_the_next_scan() {
    let disk = FaultyDisk::new(1);
    let rows = random_rows(5, 400, today());
    let files = files_on(&disk);
    let meta = write(&files, &rows, Some(TODAY), Effort::Cheap).unwrap();
    assert_eq!(read(&files, &meta).unwrap(), rows);
    disk.flip_bit(&Path::new(DIR).join(&meta.path), meta.bytes / 3, 5);
    assert_names_it(read(&files, &meta), &meta, "scan of an open file");
}

#[test]
fn a_file_with_other_rows_under_a_known_name_is_refused() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let meta = write(&files, &random_rows(5, 400, today()), Some(TODAY), Effort::Cheap).unwrap();
    let other = write(&files, &random_rows(6, 400, today()), Some(TODAY), Effort::Cheap).unwrap();
    disk.set_bytes(&Path::new(DIR).join(&meta.path), bytes(&disk, &other));
    assert_names_it(read(&files, &meta), &meta, "scan");
}
