"""What would make training faster or cheaper, ranked by the gain that the records support."""
