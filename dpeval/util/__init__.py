"""General helpers: files, units, tables, plurals, frozen values, imports."""
