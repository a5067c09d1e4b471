"""From records to a frame, laws, figures and a report; imports no torch."""
