//! Check what the store holds against what it says, and repair.
