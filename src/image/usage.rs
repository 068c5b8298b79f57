//! What the disk holds: `df`.
