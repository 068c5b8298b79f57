//! Compressed streams, recognised by content.
