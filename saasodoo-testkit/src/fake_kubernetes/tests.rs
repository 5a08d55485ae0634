//! The server by itself, without any client library.
