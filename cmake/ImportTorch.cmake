# Imports PyTorch's headers, libtorch_cpu and libc10 as TorchExt::torch.
#
# Not by find_package(Torch): where PyTorch was built with CUDA, that stops unless the CUDA toolkit is installed. PyTorch
# is found as usual, by Torch_DIR or CMAKE_PREFIX_PATH, and else by asking the python3 on PATH.
if(TARGET TorchExt::torch)
  return()
endif()

find_path(Torch_DIR TorchConfig.cmake PATHS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES Torch share/cmake/Torch NO_DEFAULT_PATH)
if(NOT Torch_DIR)
  if(NOT Python3_EXECUTABLE)
    set(Python3_EXECUTABLE python3)
  endif()
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c
            "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE torch_package
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_path(Torch_DIR TorchConfig.cmake PATHS "${torch_package}/share/cmake/Torch" NO_DEFAULT_PATH)
endif()
if(NOT Torch_DIR)
  message(FATAL_ERROR "torch_ext: PyTorch is not found. Set Torch_DIR or CMAKE_PREFIX_PATH; with PyTorch's Python package "
                      "installed: -DCMAKE_PREFIX_PATH=$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')")
endif()

get_filename_component(TORCH_PREFIX "${Torch_DIR}/../../.." ABSOLUTE)
set(TORCH_VERSION "")
foreach(part MAJOR MINOR PATCH)
  file(STRINGS "${TORCH_PREFIX}/include/torch/headeronly/version.h" line REGEX "define TORCH_VERSION_${part} ")
  string(REGEX REPLACE ".* " "." number "${line}")
  string(APPEND TORCH_VERSION "${number}")
endforeach()
string(SUBSTRING "${TORCH_VERSION}" 1 -1 TORCH_VERSION)

add_library(TorchExt::torch INTERFACE IMPORTED)
set_target_properties(
  TorchExt::torch
  PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${TORCH_PREFIX}/include;${TORCH_PREFIX}/include/torch/csrc/api/include"
             INTERFACE_LINK_LIBRARIES "${TORCH_PREFIX}/lib/libtorch_cpu.so;${TORCH_PREFIX}/lib/libc10.so"
             INTERFACE_COMPILE_FEATURES cxx_std_20)
