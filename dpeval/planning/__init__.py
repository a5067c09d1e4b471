"""Plans what every rank does and needs, from configuration and machine; starts nothing."""
