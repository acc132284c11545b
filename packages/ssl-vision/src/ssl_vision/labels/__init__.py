"""Which labels may be seen: class-balanced choices, the files that list them, and the subsets they make."""
