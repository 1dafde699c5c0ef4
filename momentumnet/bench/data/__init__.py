"""What benchmarks train on: small images, texts, wrong labels; and how they are downloaded."""
