"""What a router counts of its requests, and how any router comes to know what all processes have counted."""
