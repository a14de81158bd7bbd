"""`headgate top`: frames of the live view, drawn in a terminal."""
