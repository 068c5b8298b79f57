//! Where images come from: recognised by content.
