"""What people read: words, units, tables and the streams they go to."""
