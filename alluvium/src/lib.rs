//! The alluvium room.
