//! A bundle made, handed to the runtime, and removed.
