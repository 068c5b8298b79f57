//! Archives written from the store: the same digests as came in.
