//! The commands that README.md shows, run as they stand there.
