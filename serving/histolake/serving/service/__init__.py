"""The running service: the tasks over HTTP, on Ray Serve.

app           the application: `build` is what `histolake serve` and a KubeRay RayService both start
ingress       the routes
deployments   the encoder and the reference, each in processes of its own
bodies        what a request and an answer look like, and how large a request may be
server        starts the application on this machine and stops it
"""
