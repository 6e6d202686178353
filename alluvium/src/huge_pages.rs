//! Gives up transparent huge pages, which the allocator asks for. The only file with `unsafe`: the safe crates that wrap this call
//! would change the features of what half of the dependencies are built with.
//!
//! Batches come and go by the megabyte, and a huge page is cleared as a whole by whoever touches it first: with them a fifth
//! of the time of a cluster's nodes went into clearing memory and a tenth of a single one's, and each held a fifth more of it.

#![allow(unsafe_code)]

/// No memory of this process, and of those that it starts, becomes a huge page from now on. A kernel that knows no such wish
/// goes on as before.
pub(crate) fn give_up() {
    let none: libc::c_ulong = 0;
    // SAFETY: this option of prctl(2) takes one number and three that must be 0; it reads and writes no memory of ours.
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1 as libc::c_ulong, none, none, none) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_says_that_there_are_none() {
        super::give_up();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        if let Some(line) = status.lines().find_map(|line| line.strip_prefix("THP_enabled:")) {
            assert_eq!(line.trim(), "0");
        }
    }
}
