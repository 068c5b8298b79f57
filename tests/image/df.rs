//! What the disk holds: the sums of `df`, and its shape in JSON.
