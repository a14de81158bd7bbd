"""What surrounds Headgate where it is operated: images, configurations, and the rehearsal of docker-compose.yml."""
