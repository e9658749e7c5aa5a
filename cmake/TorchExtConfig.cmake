# find_package(TorchExt): gives the target TorchExt::torch_ext.
#
# This file lies in <prefix>/share/cmake/TorchExt. The prefix is where `cmake --install` put it, or the Python package's
# own folder, which has the same layout.
include("${CMAKE_CURRENT_LIST_DIR}/ImportTorch.cmake")

get_filename_component(TorchExt_PREFIX "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

file(STRINGS "${TorchExt_PREFIX}/lib/libtorch_ext.torch" TorchExt_BUILT_WITH)
string(REGEX MATCH "^[0-9]+\\.[0-9]+\\." TorchExt_minor "${TorchExt_BUILT_WITH}")
string(FIND "${TORCH_VERSION}" "${TorchExt_minor}" TorchExt_at)
if(NOT TorchExt_at EQUAL 0)
  set(TorchExt_FOUND FALSE)
  set(TorchExt_NOT_FOUND_MESSAGE
      "torch_ext was built with torch ${TorchExt_BUILT_WITH}, but torch ${TORCH_VERSION} is found in ${TORCH_PREFIX}")
  return()
endif()

# A program may use the library only for the ops that it registers, so the linker must not drop it as unneeded.
add_library(TorchExt::torch_ext SHARED IMPORTED)
set_target_properties(
  TorchExt::torch_ext
  PROPERTIES IMPORTED_LOCATION "${TorchExt_PREFIX}/lib/libtorch_ext.so"
             INTERFACE_INCLUDE_DIRECTORIES "${TorchExt_PREFIX}/include"
             INTERFACE_LINK_LIBRARIES TorchExt::torch
             INTERFACE_LINK_OPTIONS "LINKER:--no-as-needed")
