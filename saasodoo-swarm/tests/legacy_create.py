"""Makes a service as the system in production makes it, through docker-py.

Arguments: database name, id, base domain, image, data directory, network. Prints the service's id.
"""

import sys

import docker

database_name, instance_id, domain, image, source, network = sys.argv[1:]
name = f"odoo-{database_name}-{instance_id.replace('-', '')[:8]}"
environment = {
    "ODOO_DATABASE_HOST": "postgres-pool-1",
    "ODOO_DATABASE_PORT_NUMBER": "5432",
    "ODOO_DATABASE_NAME": "odoo_1111_0a1b2c3d",
    "ODOO_DATABASE_USER": "odoo_1111_0a1b2c3d_user",
    "ODOO_DATABASE_PASSWORD": "s3ntinel-db",
    "ODOO_EMAIL": "admin@acme.example",
    "ODOO_PASSWORD": "s3ntinel-admin",
    "ODOO_LOAD_DEMO_DATA": "no",
}
service = docker.from_env().services.create(
    image=image,
    name=name,
    env=[f"{key}={value}" for key, value in environment.items()],
    resources=docker.types.Resources(cpu_limit=100_000_000, mem_limit=64 << 20),
    mode=docker.types.ServiceMode("replicated", replicas=1),
    mounts=[docker.types.Mount(target="/bitnami/odoo", source=source, type="bind")],
    networks=[network],
    labels={
        "saasodoo.instance.id": instance_id,
        "saasodoo.instance.name": "Acme Ltd",
        "saasodoo.customer.id": "11111111-2222-4333-8444-555555555555",
        "traefik.enable": "true",
        f"traefik.http.routers.{name}.rule": f"Host(`{database_name}.{domain}`)",
        f"traefik.http.routers.{name}.service": name,
        f"traefik.http.services.{name}.loadbalancer.server.port": "8069",
    },
    restart_policy=docker.types.RestartPolicy(condition="any"),
)
print(service.id)
