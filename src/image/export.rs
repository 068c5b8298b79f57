//! An image as an oci-archive, digests unchanged.
