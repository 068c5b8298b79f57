//! Archives made to harm: nothing outside the target is touched.
