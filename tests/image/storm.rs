//! Everything at once, with processes killed at any moment.
