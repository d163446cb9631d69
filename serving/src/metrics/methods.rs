//! The methods of this server by their paths, so that a name that somebody made up becomes no label. What right a call needs
//! is decided elsewhere, by its path alone.

use foreshard_api::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One method.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Method {
    pub(crate) service: String,
    pub(crate) name: String,
}

/// All methods, by path (`/package.Service/Method`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Methods(Arc<BTreeMap<String, Method>>);

impl Methods {
    /// The methods of the services in descriptors.
    ///
    /// # Errors
    /// If they are no descriptors.
    pub(crate) fn of(descriptors: &[&[u8]]) -> Result<Self, prost::DecodeError> {
        let mut methods = BTreeMap::new();
        for bytes in descriptors {
            for file in FileDescriptorSet::decode(*bytes)?.file {
                let package = file.package().to_owned();
                for service in file.service {
                    let name = format!("{package}.{}", service.name());
                    for method in service.method {
                        let found = Method { service: name.clone(), name: method.name().to_owned() };
                        methods.insert(format!("/{name}/{}", method.name()), found);
                    }
                }
            }
        }
        Ok(Self(Arc::new(methods)))
    }

    /// Those that this server answers.
    pub(crate) fn served() -> Result<Self, prost::DecodeError> {
        use tonic_reflection::pb::{v1, v1alpha};
        Self::of(&[
            FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ])
    }

    /// The method that a path names.
    pub(crate) fn find(&self, path: &str) -> Option<&Method> {
        self.0.get(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_known_and_nothing_else() {
        let methods = Methods::served().unwrap();
        for path in [
            "/foreshard.v1.ForecastService/Forecast",
            "/foreshard.v1.ForecastService/Ingest",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(methods.find(path).is_some(), "{path}");
        }
        for path in ["/foreshard.v1.ForecastService/Nothing", "/", "", "/foreshard.v1.ForecastService/"] {
            assert!(methods.find(path).is_none(), "{path}");
        }
    }
}
