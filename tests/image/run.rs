//! A container from an image in one command.
