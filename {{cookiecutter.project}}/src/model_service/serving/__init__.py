"""The running service: a FastAPI app, served by BentoML on a laptop and by uvicorn in the container."""
