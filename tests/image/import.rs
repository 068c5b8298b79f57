//! Images from layouts and archives: every form, and every way in which one can be wrong.
