//! The objects of an instance exactly as the migration guide's Python client makes them.

use serde_json::{Value, json};

use super::{Bed, image};

/// An instance of the guide.
pub(crate) struct GuideInstance {
    pub(crate) id: String,
    pub(crate) database: String,
    pub(crate) name: String,
}

impl GuideInstance {
    /// Creates the claim, the Deployment, the Service and the route, one after the other, as the guide does.
    pub(crate) async fn create(bed: &Bed, id: &str, database: &str) -> Self {
        let name = format!("odoo-{database}-{id}");
        bed.create("", "v1", "PersistentVolumeClaim", claim(&name)).await;
        bed.create("apps", "v1", "Deployment", deployment(&name, id, database))
            .await;
        bed.create("", "v1", "Service", service(&name)).await;
        bed.create("traefik.io", "v1alpha1", "IngressRoute", route(&name, database))
            .await;
        Self {
            id: id.to_owned(),
            database: database.to_owned(),
            name,
        }
    }

    /// The credentials that all instances of the guide share.
    pub(crate) async fn credentials(bed: &Bed) {
        let secret = json!({
            "metadata": {"name": "odoo-db-credentials"},
            "stringData": {"username": "odoo", "password": "shared"},
        });
        bed.create("", "v1", "Secret", secret).await;
    }
}

pub(crate) fn claim(name: &str) -> Value {
    json!({
        "metadata": {"name": format!("{name}-storage"), "labels": {"app": "odoo", "managed-by": "saasodoo"}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "cephfs-saasodoo",
            "resources": {"requests": {"storage": "10Mi"}},
        },
    })
}

pub(crate) fn deployment(name: &str, id: &str, database: &str) -> Value {
    let credential = |key: &str| json!({"secretKeyRef": {"name": "odoo-db-credentials", "key": key}});
    json!({
        "metadata": {"name": name, "labels": {"app": "odoo", "instance-id": id, "managed-by": "saasodoo"}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "odoo", "instance-id": id}},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": {
                    "app": "odoo", "instance-id": id, "database": database, "managed-by": "saasodoo",
                }},
                "spec": {
                    "containers": [{
                        "name": "odoo",
                        "image": image().to_string(),
                        "ports": [{"containerPort": 8069, "name": "http"}],
                        "env": [
                            {"name": "ODOO_DATABASE_HOST", "value": "postgres"},
                            {"name": "ODOO_DATABASE_PORT", "value": "5432"},
                            {"name": "ODOO_DATABASE_NAME", "value": database},
                            {"name": "ODOO_DATABASE_USER", "valueFrom": credential("username")},
                            {"name": "ODOO_DATABASE_PASSWORD", "valueFrom": credential("password")},
                            {"name": "WORKERS", "value": "2"},
                        ],
                        "resources": {
                            "requests": {"cpu": "10m", "memory": "32Mi"},
                            "limits": {"cpu": "10m", "memory": "32Mi"},
                        },
                        "volumeMounts": [{"name": "odoo-data", "mountPath": "/bitnami/odoo"}],
                        "livenessProbe": {
                            "httpGet": {"path": "/web/health", "port": 8069},
                            "initialDelaySeconds": 120, "periodSeconds": 30, "timeoutSeconds": 5, "failureThreshold": 3,
                        },
                        "readinessProbe": {
                            "httpGet": {"path": "/web/health", "port": 8069},
                            // The guide waits 30 s; nothing here depends on that.
                            "initialDelaySeconds": 1, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
                        },
                    }],
                    "volumes": [{
                        "name": "odoo-data",
                        "persistentVolumeClaim": {"claimName": format!("{name}-storage")},
                    }],
                },
            },
        },
    })
}

pub(crate) fn service(name: &str) -> Value {
    let id = name.rsplit('-').next().unwrap_or_default();
    json!({
        "metadata": {"name": name, "labels": {"app": "odoo", "managed-by": "saasodoo"}},
        "spec": {
            "type": "ClusterIP",
            "selector": {"app": "odoo", "instance-id": id},
            "ports": [{"name": "http", "port": 8069, "targetPort": 8069}],
        },
    })
}

pub(crate) fn route(name: &str, subdomain: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "entryPoints": ["web", "websecure"],
            "routes": [{
                "match": format!("Host(`{subdomain}.{}`)", super::BASE),
                "kind": "Rule",
                "services": [{"name": name, "port": 8069}],
            }],
        },
    })
}
