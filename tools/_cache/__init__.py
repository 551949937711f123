"""Results of earlier runs, found again by everything that they depend on."""
