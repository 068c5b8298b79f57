//! Names of images: the reference grammar, tags and digests.
