"""What campaigns do within a process of their own, where Keras runs on the backend that is tried."""
